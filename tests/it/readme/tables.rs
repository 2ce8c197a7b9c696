//! Tables and links of the documents, held to the code.

use std::{collections::BTreeSet, fs};

use coupon_api::App;
use coupon_core::{
    Code,
    config::{KEYS, Settings},
    job::{Kind, Queue, signals::Signals},
    user::token::TokenKeys,
};

use super::{documents, read, root};
use crate::deploy::compose_variables;

#[test]
fn every_link_leads_to_a_file() {
    for document in documents() {
        let folder = root().join(&document).parent().unwrap().to_owned();
        let text = read(&document);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !target.starts_with("http") && !target.starts_with('#') {
                let file = target.split('#').next().unwrap();
                assert!(folder.join(file).exists(), "{document} links to {target}");
            }
        }
    }
}

#[test]
fn every_setting_is_in_the_table_and_in_the_sample() {
    let table = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.trim_start_matches("//! "))
            .filter(|line| line.starts_with("| `"))
            .map(str::to_owned)
            .collect()
    };
    let code = table(&read("core/src/config.rs"));
    let operations = read("docs/operations.md");
    let documented = table(
        operations
            .split("## Settings")
            .nth(1)
            .unwrap()
            .split("\n## ")
            .next()
            .unwrap(),
    );
    assert_eq!(
        documented, code,
        "docs/operations.md has the table of core/src/config.rs"
    );
    let sample = read(".env.sample");
    let sampled: BTreeSet<&str> = sample
        .lines()
        .filter(|line| !line.starts_with("# "))
        .filter_map(|line| line.trim_start_matches('#').split_once('='))
        .map(|(variable, _)| variable)
        .collect();
    for (key, variable) in KEYS {
        assert!(
            code.iter()
                .any(|row| row.contains(&format!("`{key}`")) && row.contains(&format!("`{variable}`"))),
            "{key}"
        );
    }
    let of_compose = compose_variables();
    let known = KEYS
        .iter()
        .map(|(_, variable)| *variable)
        .chain(of_compose.iter().map(String::as_str))
        .collect();
    assert_eq!(sampled, known, ".env.sample");
}

#[test]
fn every_refusal_is_in_the_table_with_its_status() {
    let text = read("docs/api.md");
    for code in Code::ALL {
        let status = coupon_api::problem::status(code.kind()).as_u16();
        let row = format!("| `{code}` | {status} |");
        assert!(text.contains(&row), "docs/api.md lacks {row}");
    }
}

#[tokio::test]
async fn every_operation_is_in_the_list() {
    let url = "postgres://localhost/none"; // never connected
    let keys = TokenKeys::new(coupon_tests::SECRET.as_bytes()).unwrap();
    let app = App::new(url, &Settings::default(), keys, Signals::start(url).unwrap()).unwrap();
    let document: serde_json::Value = serde_json::from_str(&coupon_api::openapi(&app)).unwrap();
    let mut operations = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item
            .as_object()
            .unwrap()
            .keys()
            .filter(|key| *key != "parameters")
        {
            operations.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    let text = read("docs/api.md");
    let listed: BTreeSet<String> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|text| {
            ["GET /", "POST /", "PATCH /", "DELETE /"]
                .iter()
                .any(|verb| text.starts_with(verb))
        })
        .map(|text| text.split(['?', ' ']).take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        listed, operations,
        "left: docs/api.md, right: the OpenAPI document"
    );
}

#[test]
fn every_table_kind_and_queue_is_told_of() {
    let architecture = read("docs/architecture.md");
    for entry in fs::read_dir(root().join("migrations")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for line in text
            .lines()
            .filter(|line| line.starts_with("CREATE") && line.contains(" TABLE "))
        {
            let name = line
                .split(" TABLE ")
                .nth(1)
                .unwrap()
                .split_whitespace()
                .next()
                .unwrap();
            assert!(
                architecture.contains(&format!("    {name} {{\n")),
                "docs/architecture.md lacks {name}"
            );
        }
    }
    let jobs = read("docs/jobs.md");
    for name in Kind::ALL
        .map(Kind::as_str)
        .into_iter()
        .chain(Queue::ALL.map(Queue::name))
    {
        assert!(
            jobs.contains(&format!("| `{name}` |")),
            "docs/jobs.md lacks {name}"
        );
    }
}
