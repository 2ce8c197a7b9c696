//! /metrics: what Prometheus can read, nothing that is secret, and every name that the rules and the dashboard use.

use std::{collections::BTreeSet, path::Path};

use coupon_core::{caller::Role, config::Settings};
use coupon_tests::{Client, Service, process::Process};
use serde_json::{Value, json};

async fn scrape(client: &Client) -> String {
    let answer = client.get("/metrics").await;
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    match answer.expect(200) {
        Value::String(text) => text,
        other => panic!("no text: {other}"),
    }
}

/// The value of a series, spelled as it stands in the text.
fn value(text: &str, series: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}"))
        .parse()
        .unwrap()
}

/// Everything that has a help text, with the suffixes of a histogram.
fn names(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in text.lines() {
        let Some((name, sort)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) else {
            continue;
        };
        let help = format!("# HELP {name} ");
        assert!(
            text.lines().any(|line| line.starts_with(&help)),
            "{name} has no help"
        );
        let suffixes: &[&str] = match sort {
            "histogram" => &["_bucket", "_sum", "_count"],
            "counter" | "gauge" => &[""],
            other => panic!("{name} is a {other}"),
        };
        names.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_tells_of_requests_jobs_and_the_database_and_of_no_code() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({})).await;
    admin.codes(book_id, &["SECRETCODE-1".to_owned()]).await;
    let body = json!({ "user_id": user_id });
    let job = admin
        .post("/v1/coupons/assign/SECRETCODE-1", body)
        .await
        .expect(202);
    admin.job_end(job["id"].as_str().unwrap()).await;
    user.post("/v1/coupons/lock/SECRETCODE-1", json!({}))
        .await
        .expect(200);
    user.get("/v1/nothing/SECRETPATH").await.refused(404, "not_found");
    let method = "SECRETMETHOD".parse().unwrap();
    user.send(user.request(method, "/v1/books"))
        .await
        .refused(405, "method_not_allowed");

    let text = scrape(&service.nobody()).await;
    assert!(!text.contains("SECRET"), "{text}");
    let names = names(&text);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        assert!(names.contains(name), "{name} has no type");
        let value = line.rsplit(' ').next().unwrap();
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
    }
    let locked = "http_server_request_duration_seconds_count{method=\"POST\",route=\"/v1/coupons/lock/{code}\",status=\"200\"}";
    assert!(value(&text, locked) >= 1.0);
    assert!(
        value(
            &text,
            "http_server_request_duration_seconds_count{method=\"GET\",route=\"other\",status=\"404\"}"
        ) >= 1.0
    );
    assert!(
        value(
            &text,
            "http_server_request_duration_seconds_count{method=\"other\",route=\"/v1/books\",status=\"405\"}"
        ) >= 1.0
    );
    assert!(value(&text, "couponbook_job_duration_seconds_count{kind=\"assign\"}") >= 1.0);
    assert!(
        value(
            &text,
            "couponbook_job_duration_seconds_bucket{kind=\"assign\",le=\"+Inf\"}"
        ) >= 1.0
    );
    assert!(
        value(
            &text,
            "couponbook_jobs_finished_total{kind=\"import\",state=\"succeeded\"}"
        ) >= 1.0
    );
    assert_eq!(value(&text, "couponbook_database_up"), 1.0);
    for queue in ["assign", "bulk", "system"] {
        assert_eq!(
            value(&text, &format!("couponbook_workers{{queue=\"{queue}\"}}")),
            1.0
        );
        value(&text, &format!("couponbook_jobs_due{{queue=\"{queue}\"}}"));
        value(
            &text,
            &format!("couponbook_oldest_due_job_seconds{{queue=\"{queue}\"}}"),
        );
    }
    for state in ["unassigned", "assigned", "locked", "redeemed", "void"] {
        value(&text, &format!("couponbook_coupons{{state=\"{state}\"}}"));
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_nobody_takes_and_locks_that_nobody_sweeps_are_seen() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let (_, user_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({})).await;
    for _ in 0..3 {
        let body = json!({ "book_id": book_id, "user_id": user_id });
        admin.post("/v1/coupons/assign", body).await.expect(202);
    }
    sqlx::raw_sql(
        "UPDATE apalis.jobs SET id = '0000000000' || substr(id, 11);
         INSERT INTO coupons (book_id, code_key, draw_key, redemptions_allowed, state, assigned_user_id, assigned_at,
                              lock_token_hash, lock_renewals_left, locked_until)
         SELECT id, 'C', 1, 1, 'locked', id, now(), 'x', 3, now() - interval '90 s' FROM books",
    )
    .execute(service.db.pool())
    .await
    .unwrap();
    let text = scrape(&service.nobody()).await;
    assert_eq!(value(&text, "couponbook_jobs_due{queue=\"assign\"}"), 3.0);
    assert!(
        value(&text, "couponbook_oldest_due_job_seconds{queue=\"assign\"}") > 1e9,
        "since 1970"
    );
    assert_eq!(
        value(&text, "couponbook_oldest_due_job_seconds{queue=\"bulk\"}"),
        0.0
    );
    assert_eq!(value(&text, "couponbook_workers{queue=\"assign\"}"), 0.0);
    let lag = value(&text, "couponbook_lock_sweep_lag_seconds");
    assert!((90.0..150.0).contains(&lag), "{lag}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_on_a_listener_of_their_own_are_nowhere_else() {
    let service = Service::with(Settings {
        metrics_listen: Some(([127, 0, 0, 1], 0).into()),
        ..Settings::default()
    })
    .await;
    service.nobody().get("/metrics").await.refused(404, "not_found");

    let environment = [
        ("COUPONBOOK_DATABASE_URL", service.database.url()),
        ("COUPONBOOK_METRICS_LISTEN", "127.0.0.1:0"),
    ];
    let worker = Process::start(&["worker", "--queues", "assign,system"], &environment).await;
    let stderr = worker.stderr();
    let url = stderr
        .lines()
        .find_map(|line| line.strip_prefix("metrics on "))
        .unwrap();
    let text = scrape(&Client::new(url.strip_suffix("/metrics").unwrap())).await;
    assert_eq!(value(&text, "couponbook_workers{queue=\"system\"}"), 1.0);
    assert_eq!(value(&text, "couponbook_workers{queue=\"bulk\"}"), 0.0);
    assert_eq!(worker.terminate().await.code(), Some(0));
    service.stop().await;
}

/// Words that look like names of metrics.
fn mentioned(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| {
            ["couponbook_", "http_server_", "process_"]
                .iter()
                .any(|prefix| word.starts_with(prefix))
        })
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_dashboard_and_documents_use_names_that_there_are() {
    let service = Service::start().await;
    let names = names(&scrape(&service.nobody()).await);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    for path in ["deploy/prometheus/alerts.yml", "deploy/grafana/couponbook.json"] {
        let used = mentioned(&read(path));
        assert!(used.len() > 5, "{path} uses {used:?}");
        let unknown: Vec<_> = used.difference(&names).collect();
        assert!(unknown.is_empty(), "{path} uses {unknown:?}");
    }
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/couponbook.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(
        panels
            .iter()
            .all(|panel| panel["title"].is_string() && panel["targets"][0]["expr"].is_string())
    );
    // And each family is explained.
    let explained = mentioned(&read("docs/operations.md"));
    for name in &names {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix));
        let known = explained.contains(name) || family.is_some_and(|family| explained.contains(family));
        assert!(known, "{name} is not in docs/operations.md");
    }
    service.stop().await;
}
