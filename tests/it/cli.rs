//! The client commands as a script meets them: the real binary against a real service. What goes to stdout, what to
//! stderr, and with which code it ends.

mod commands;
mod ends;

use std::{process::Stdio, time::Duration};

use coupon_tests::{
    Client, Service, database,
    process::{Process, command},
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a command left.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// Asserts how it ended; shows what it wrote.
    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

/// A service, and a command line that may do everything with it.
struct Scene {
    service: Service,
    admin: Client,
    book_id: Uuid,
    key: String,
    dir: tempfile::TempDir,
}

impl Scene {
    async fn new(service: Service) -> Self {
        let admin = service.admin().await;
        let book_id = admin
            .book(json!({ "name": "Summer", "require_lock": false }))
            .await;
        let key = json!({ "name": "cli", "scopes": ["manage"] });
        let key = admin.post("/v1/api-keys", key).await.expect(201);
        Self {
            service,
            admin,
            book_id,
            key: key["key"].as_str().unwrap().to_owned(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = command(arguments);
        command
            .env("COUPONBOOK_URL", &self.service.url)
            .env("COUPONBOOK_API_KEY", &self.key)
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    async fn run_with(&self, arguments: &[&str], input: &[u8]) -> Ran {
        ended(self.command(arguments), input).await
    }

    async fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, b"").await
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir.path().join(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    async fn unassigned(&self) -> i64 {
        let stats = self.admin.get(&format!("/v1/books/{}/stats", self.book_id)).await;
        stats.expect(200)["unassigned"].as_i64().unwrap()
    }
}

async fn ended(mut command: tokio::process::Command, input: &[u8]) -> Ran {
    let mut child = command.spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("piped");
    let _ = stdin.write_all(input).await; // who does not read it may have ended
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output());
    let output = output.await.expect("it ends").expect("waited");
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_tells_a_sound_service_from_one_without_workers_or_schema() {
    let diagnose = async |url: &str| {
        let mut doctor = command(&["doctor", "--json"]);
        doctor
            .env("COUPONBOOK_DATABASE_URL", url)
            .env("COUPONBOOK_TOKEN_SECRET", coupon_tests::SECRET)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let ran = ended(doctor, b"").await;
        let lines: Vec<Value> = ran
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let of = move |check: &str| {
            let found = lines.iter().find(|line| line["check"] == check);
            found.unwrap_or_else(|| panic!("no {check}: {lines:?}"))["status"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        (ran.code, of)
    };
    let database = database().await;
    let (code, of) = diagnose(database.url()).await;
    assert_eq!(
        (code, of("workers").as_str(), of("schema").as_str()),
        (Some(1), "fail", "ok")
    );
    let worker = Process::worker(database.url()).await;
    let pool = sqlx::PgPool::connect(database.url()).await.unwrap();
    crate::truth::until(
        &pool,
        "a tick is taken",
        "SELECT EXISTS (SELECT FROM ticks WHERE schedule = 'sweep-locks')",
    )
    .await;
    let (_, of) = diagnose(database.url()).await;
    assert_eq!(
        (
            of("workers").as_str(),
            of("clock").as_str(),
            of("administrator").as_str()
        ),
        ("ok", "ok", "warn")
    );
    assert_eq!(worker.terminate().await.code(), Some(0));

    let empty =
        coupon_pg::testing::TestDatabase::create("couponbook_empty", |_| async { Ok::<(), String>(()) })
            .await;
    let (code, of) = diagnose(empty.url()).await;
    assert_eq!((code, of("schema").as_str()), (Some(1), "fail"));
    let (code, of) = diagnose("postgres://nobody@127.0.0.1:1/none").await;
    assert_eq!((code, of("database").as_str()), (Some(1), "fail"));
}

#[tokio::test]
async fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let mut completions = command(&["completions", shell]);
        completions
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let ran = ended(completions, b"").await.expect(0);
        assert!(
            ran.stdout.contains("export") && ran.stdout.contains("couponbook"),
            "{shell}"
        );
    }
}
