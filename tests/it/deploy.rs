//! The compose file and the image: held to the specification's schema, to the settings and the command line, and run as
//! they say, on this machine's PostgreSQL.
//!
//! `./x image` builds what the Dockerfile builds and runs these tests with it (`COUPONBOOK_BIN`).
#![expect(
    clippy::unwrap_used,
    reason = "a file of this repository that cannot be read fails the test"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use boon::{Compiler, Schemas};
use coupon_core::config::KEYS;
use coupon_tests::{
    Client, SECRET,
    process::{Process, command},
};
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::processes::empty_database;

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// YAML as JSON, with its merge keys (`<<`) carried out.
fn json_of(yaml: &Yaml<'_>) -> Value {
    match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(value)) => json!(value),
        Yaml::Value(Scalar::Integer(value)) => json!(value),
        Yaml::Value(Scalar::String(value)) => json!(value),
        Yaml::Sequence(items) => items.iter().map(json_of).collect(),
        Yaml::Mapping(pairs) => {
            let mut members = Map::new();
            let mut merged = Map::new();
            for (key, value) in pairs {
                match (key.as_str().expect("a key is a text"), json_of(value)) {
                    ("<<", Value::Object(base)) => merged.extend(base),
                    (key, value) => drop(members.insert(key.to_owned(), value)),
                }
            }
            merged.extend(members); // what stands here wins
            Value::Object(merged)
        }
        other => panic!("not expected in a compose file: {other:?}"),
    }
}

fn compose() -> Value {
    let text = read("docker-compose.yml");
    let documents = Yaml::load_from_str(&text).expect("YAML");
    json_of(&documents[0])
}

/// The `${…}` of a text, each with what follows its name.
fn interpolations(text: &str) -> Vec<(&str, &str)> {
    text.split("${")
        .skip(1)
        .map(|rest| {
            let inner = rest.split('}').next().unwrap();
            inner.split_at(inner.find(':').unwrap_or(inner.len()))
        })
        .collect()
}

/// The variables that the compose file takes from `.env`.
pub(crate) fn compose_variables() -> BTreeSet<String> {
    let text = read("docker-compose.yml");
    interpolations(&text)
        .into_iter()
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// A value with its variables filled in, as compose does it: from `env`, or by the default of `:-`.
fn fill(value: &str, env: &BTreeMap<&str, &str>) -> String {
    let mut filled = value.to_owned();
    for (name, rest) in interpolations(value) {
        let with = match (env.get(name), rest.strip_prefix(":-")) {
            (Some(value), _) => value,
            (None, Some(default)) => default,
            (None, None) => panic!("{name} is not set: {rest}"),
        };
        filled = filled.replace(&format!("${{{name}{rest}}}"), with);
    }
    filled
}

/// What compose gives to a service: its words and its environment.
fn service(compose: &Value, name: &str, env: &BTreeMap<&str, &str>) -> (Vec<String>, Vec<(String, String)>) {
    let service = &compose["services"][name];
    let words = service["command"].as_array().unwrap();
    let words = words
        .iter()
        .map(|word| fill(word.as_str().unwrap(), env))
        .collect();
    let settings = service["environment"].as_object().unwrap();
    let settings = settings
        .iter()
        .map(|(name, value)| (name.clone(), fill(value.as_str().unwrap(), env)))
        .collect();
    (words, settings)
}

/// The services that run the image.
fn ours(compose: &Value) -> Vec<&str> {
    let services = compose["services"].as_object().unwrap();
    services
        .iter()
        .filter(|(_, service)| service["image"] == "coupon-book")
        .map(|(name, _)| name.as_str())
        .collect()
}

#[test]
fn the_compose_file_is_one_by_the_schema_of_the_specification() {
    let schema: Value = serde_json::from_str(&read("tests/deploy/compose-spec.json")).unwrap();
    let mut schemas = Schemas::new();
    let mut compiler = Compiler::new();
    compiler
        .add_resource("compose-spec.json", schema)
        .expect("a schema");
    let index = compiler
        .compile("compose-spec.json", &mut schemas)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let compose = compose();
    if let Err(error) = schemas.validate(&compose, index) {
        panic!("{error:#}");
    }
    // It would have said so.
    for (pointer, value) in [
        ("/services/api/prots", json!(["8080:8080"])),
        ("/services/worker/deploy/replicas", json!({})),
        ("/services/api/healthcheck/test", json!(7)),
    ] {
        let mut wrong = compose.clone();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        wrong.pointer_mut(parent).unwrap()[name] = value;
        assert!(schemas.validate(&wrong, index).is_err(), "{pointer}");
    }
}

#[test]
fn the_compose_file_sets_only_what_is_a_setting_and_asks_for_what_must_be_set() {
    let compose = compose();
    assert_eq!(ours(&compose), ["api", "migrate", "worker"]);
    for name in ours(&compose) {
        for (variable, _) in compose["services"][name]["environment"].as_object().unwrap() {
            assert!(
                KEYS.iter().any(|(_, known)| known == variable),
                "{name}: {variable}"
            );
        }
    }
    // What has no default stands in the sample, empty or as an example, and is asked for.
    let text = read("docker-compose.yml");
    let sample = read(".env.sample");
    for (name, rest) in interpolations(&text) {
        let asked = rest.starts_with(":?");
        assert!(asked || rest.starts_with(":-"), "${{{name}{rest}}}");
        assert_eq!(
            sample.contains(&format!("\n{name}=")),
            asked,
            "{name} in .env.sample"
        );
    }
    // The URL leads to the database that the other service makes.
    let database = &compose["services"]["postgres"]["environment"];
    let url = compose["services"]["api"]["environment"]["COUPONBOOK_DATABASE_URL"]
        .as_str()
        .unwrap();
    let to = format!(
        "postgres://{}:{}@postgres:5432/{}",
        database["POSTGRES_USER"].as_str().unwrap(),
        database["POSTGRES_PASSWORD"].as_str().unwrap(),
        database["POSTGRES_DB"].as_str().unwrap()
    );
    assert_eq!(url, to);
}

#[test]
fn the_image_is_built_with_the_compiler_of_the_manifest_and_runs_as_nobody_special() {
    let dockerfile = read("Dockerfile");
    let manifest = read("Cargo.toml");
    let floor = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = \""))
        .unwrap()
        .trim_end_matches('"');
    let lines: Vec<&str> = dockerfile.lines().collect();
    for line in [
        format!("FROM rust:{floor}-bookworm AS build").as_str(),
        "FROM debian:bookworm-slim", // the C library that it was linked with
        "USER 10001",
        "STOPSIGNAL SIGTERM",
        "ENTRYPOINT [\"couponbook\"]", // no shell between the signal and the process
    ] {
        assert!(lines.contains(&line), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processes_of_the_compose_file_do_their_work_together() {
    let compose = compose();
    let database = empty_database().await;
    let env = BTreeMap::from([
        ("POSTGRES_PASSWORD", "never used: the URL is another here"),
        ("COUPONBOOK_TOKEN_SECRET", SECRET),
        ("COUPONBOOK_ADMIN_EMAIL", "admin@example.com"),
        ("COUPONBOOK_ADMIN_PASSWORD", "a password that nobody guesses"),
    ]);
    // Two things are not as in a container: where the database is, and that the port is not free for us alone.
    let here = |name: &str| {
        let (words, mut settings) = service(&compose, name, &env);
        let url = settings
            .iter_mut()
            .find(|(name, _)| name == "COUPONBOOK_DATABASE_URL");
        url.unwrap().1 = database.url().to_owned();
        let words: Vec<String> = words
            .into_iter()
            .map(|word| word.replace("0.0.0.0:8080", "127.0.0.1:0"))
            .collect();
        (words, settings)
    };
    let start = async |name: &str| {
        let (words, settings) = here(name);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let settings: Vec<(&str, &str)> = settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        Process::start(&words, &settings).await
    };

    let (words, settings) = here("migrate");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let migrated = command(&words).envs(settings).status().await.unwrap();
    assert!(migrated.success(), "{migrated}");

    let listens = &compose["services"]["api"]["command"];
    assert_eq!(
        listens,
        &json!(["api", "--listen", "0.0.0.0:8080"]),
        "as published"
    );
    let api = start("api").await;
    let replicas = compose["services"]["worker"]["deploy"]["replicas"]
        .as_u64()
        .unwrap();
    let mut processes = Vec::new();
    for _ in 0..replicas {
        processes.push(start("worker").await);
    }

    let check = compose["services"]["api"]["healthcheck"]["test"]
        .as_array()
        .unwrap();
    let check: Vec<&str> = check.iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(check[..2], ["CMD", "couponbook"]);
    let healthy = async |url: &str| {
        let mut check = command(&check[2..]);
        check.env("COUPONBOOK_URL", url).output().await.unwrap().status
    };
    assert!(healthy(&api.url()).await.success());
    assert!(!healthy("http://127.0.0.1:9").await.success());

    let nobody = Client::new(&api.url());
    let login =
        json!({ "email": env["COUPONBOOK_ADMIN_EMAIL"], "password": env["COUPONBOOK_ADMIN_PASSWORD"] });
    let session = nobody.post("/v1/auth/login", login).await.expect(200);
    let admin = nobody.bearer(session["access_token"].as_str().unwrap());
    let me = admin.get("/v1/me").await.expect(200);
    let book_id = admin.book(json!({})).await;
    admin.codes(book_id, &["COMPOSED-1".to_owned()]).await;
    let wanted = json!({ "book_id": book_id, "user_id": me["id"] });
    let job = admin
        .with("Prefer", "wait=20")
        .post("/v1/coupons/assign", wanted)
        .await;
    assert_eq!(job.expect(200)["result"]["coupons"][0]["code"], "COMPOSED-1");
    let page = nobody.get("/").await;
    assert_eq!(page.status, 200);

    // As `docker compose stop` does it, within the time that the file grants.
    let grace = compose["services"]["api"]["stop_grace_period"].as_str().unwrap();
    let grace = Duration::from_secs(grace.trim_end_matches('s').parse().unwrap());
    processes.push(api);
    for process in processes {
        let since = Instant::now();
        assert_eq!(process.terminate().await.code(), Some(0));
        assert!(since.elapsed() < grace);
    }
}
