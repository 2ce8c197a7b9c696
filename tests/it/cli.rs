//! The client commands as a script meets them: the real binary against a real service. What goes to stdout, what to
//! stderr, and with which code it ends.

use std::{io::Write, process::Stdio, time::Duration};

use coupon_core::caller::Role;
use coupon_tests::{
    Client, Service, database,
    process::{Process, command},
    seed,
};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
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

fn gzip(text: &str) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(text.as_bytes()).unwrap();
    packer.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_imported_checked_and_its_bad_lines_are_kept() {
    let scene = Scene::new(Service::start().await).await;
    scene.write("codes.csv", b"code\nA-1\nA-2\na 1\n\xc3\xa4\n");
    scene.write("more.csv.gz", &gzip("code\nB-1\nB-2\n"));

    let checked = scene
        .run(&["import", "codes.csv", "--book", "Summer", "--dry-run", "--wait"])
        .await
        .expect(6);
    assert!(
        checked.stdout.starts_with("import ") && checked.stdout.contains(" partially_succeeded"),
        "{}",
        checked.stdout
    );
    assert_eq!(scene.unassigned().await, 0);

    let book = scene.book_id.to_string();
    let ran = scene
        .run(&[
            "import",
            "codes.csv",
            "--book",
            &book,
            "--errors",
            "bad.csv",
            "--json",
        ])
        .await
        .expect(6);
    assert_eq!(ran.json()["counts"]["accepted"], 2, "{}", ran.stdout);
    assert!(
        ran.stderr.contains("bad.csv") && !ran.stderr.contains('\x1b'),
        "{}",
        ran.stderr
    );
    let bad = scene.read("bad.csv");
    assert!(
        bad.starts_with("code,line,reason,detail") && bad.lines().count() == 3,
        "{bad}"
    );
    let job = ran.json()["id"].as_str().unwrap().to_owned();
    let lines = scene.run(&["jobs", "errors", &job, "--json"]).await.expect(0);
    let reasons: Vec<Value> = lines
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["reason"].clone())
        .collect();
    assert_eq!(reasons, ["duplicate_in_file", "bad_character"]);
    assert_eq!(
        scene
            .run(&["jobs", "errors", &job, "--csv"])
            .await
            .expect(0)
            .stdout,
        bad
    );

    // Packed, and from a pipe without a length: sent as they are.
    scene
        .run(&["import", "more.csv.gz", "--book", "Summer", "--wait"])
        .await
        .expect(0);
    let piped = scene
        .run_with(
            &["import", "-", "--book", "Summer", "--wait"],
            &gzip("code\nC-1\n"),
        )
        .await;
    piped.expect(0);
    assert_eq!(scene.unassigned().await, 5);
    // Without --wait the id of the job is the data, and nothing else.
    let started = scene
        .run_with(&["import", "-", "--book", "Summer"], b"code\nD-1\n")
        .await
        .expect(0);
    let id: Uuid = started.stdout.trim().parse().expect("an id");
    assert_eq!(started.stderr, "");
    let watched = scene.run(&["jobs", "watch", &id.to_string()]).await.expect(0);
    assert!(
        watched.stdout.contains("succeeded") && watched.stdout.contains("accepted 1"),
        "{}",
        watched.stdout
    );
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coupons_are_assigned_redeemed_and_exported() {
    let scene = Scene::new(Service::start().await).await;
    let (_, user_id) = scene.service.user(Role::User).await;
    scene.admin.codes(scene.book_id, &seed::codes(3)).await;
    let user = scene.admin.get(&format!("/v1/users/{user_id}")).await.expect(200);
    let email = user["email"].as_str().unwrap();

    let assigned = scene
        .run(&[
            "assign", "--book", "Summer", "--user", email, "--count", "2", "--wait",
        ])
        .await
        .expect(0);
    let codes: Vec<&str> = assigned.stdout.lines().collect();
    assert!(
        codes.len() == 2 && codes.iter().all(|code| code.starts_with("CODE-")),
        "{codes:?}"
    );
    let redeemed = scene.run(&["coupons", "redeem", codes[0]]).await.expect(0);
    redeemed
        .stdout
        .trim()
        .parse::<Uuid>()
        .expect("the redemption's id");
    let shown = scene.run(&["coupons", "get", codes[0], "--json"]).await.expect(0);
    assert_eq!(shown.json()["state"], "redeemed");
    scene.run(&["coupons", "redeem", codes[0]]).await.expect(5);
    let lock = scene.run(&["coupons", "lock", codes[1]]).await.expect(0);
    scene.run(&["coupons", "lock", codes[1]]).await.expect(5);
    scene
        .run(&["coupons", "unlock", codes[1], "--token", lock.stdout.trim()])
        .await
        .expect(0);
    scene.run(&["coupons", "redeem", "NO-SUCH-CODE"]).await.expect(4);
    let none = scene
        .run(&[
            "assign", "--book", "Summer", "--user", email, "--count", "9", "--wait",
        ])
        .await
        .expect(5);
    assert!(
        none.stdout.is_empty() && none.stderr.contains("book_exhausted"),
        "{}",
        none.stderr
    );

    let all = scene.run(&["export", "--book", "Summer"]).await.expect(0);
    assert!(
        all.stdout.starts_with("code,state,assigned_user_id,"),
        "{}",
        all.stdout
    );
    assert_eq!(all.stdout.lines().count(), 4);
    scene
        .run(&[
            "export",
            "--book",
            "Summer",
            "--kind",
            "redemptions",
            "-o",
            "used.csv",
        ])
        .await
        .expect(0);
    assert!(scene.read("used.csv").contains(codes[0]));
    assert_eq!(
        std::fs::read_dir(scene.dir.path()).unwrap().count(),
        1,
        "no draft is left behind"
    );
    let started = scene
        .run(&["export", "--book", "Summer", "--detach", "--state", "redeemed"])
        .await
        .expect(0);
    let later = scene
        .run(&["export", "--id", started.stdout.trim()])
        .await
        .expect(0);
    assert_eq!(later.stdout.lines().count(), 2, "{}", later.stdout);
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn books_and_jobs_are_listed_and_made_and_lists_are_one_object_a_line() {
    let scene = Scene::new(Service::start().await).await;
    let made = scene
        .run(&[
            "books",
            "create",
            "Winter",
            "--status",
            "draft",
            "--max-assignments-per-user",
            "2",
        ])
        .await
        .expect(0);
    let id = made.stdout.trim().to_owned();
    let shown = scene
        .run(&["books", "get", "Winter", "--json"])
        .await
        .expect(0)
        .json();
    assert_eq!(
        (&shown["id"], &shown["max_assignments_per_user"]),
        (&json!(id), &json!(2))
    );
    scene.admin.codes(scene.book_id, &seed::codes(2)).await;
    let listed = scene.run(&["books", "ls"]).await.expect(0);
    assert!(
        listed.stdout.contains("Winter") && !listed.stdout.contains('\x1b'),
        "{}",
        listed.stdout
    );
    for arguments in [
        &["books", "ls", "--json"][..],
        &["jobs", "ls", "--json", "--book", "Summer"][..],
    ] {
        let lines = scene.run(arguments).await.expect(0).stdout;
        assert!(!lines.is_empty());
        for line in lines.lines() {
            assert!(
                serde_json::from_str::<Value>(line).unwrap()["id"].is_string(),
                "{line}"
            );
        }
    }
    // Two of one name are one too many to guess.
    scene.admin.book(json!({ "name": "Winter" })).await;
    let which = scene.run(&["books", "get", "Winter"]).await.expect(5);
    assert!(
        which.stdout.is_empty() && which.stderr.contains("Winter"),
        "{}",
        which.stderr
    );
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_fail_has_its_exit_code_and_leaves_stdout_empty() {
    let scene = Scene::new(Service::without_workers().await).await;
    let fails = async |arguments: &[&str], code: i32| {
        let ran = scene.run(arguments).await.expect(code);
        assert_eq!(ran.stdout, "", "{arguments:?}");
        assert!(!ran.stderr.is_empty(), "{arguments:?}");
        ran.stderr
    };
    fails(&["jobs", "get", &Uuid::now_v7().to_string()], 4).await;
    fails(&["books", "get", "No such book"], 4).await;
    fails(&["import", "no-such-file.csv", "--book", "Summer"], 2).await;
    fails(&["import"], 2).await;
    fails(&["books", "ls", "--url", "nonsense"], 2).await;
    fails(&["books", "ls", "--url", "http://127.0.0.1:1"], 1).await;
    let problem = fails(&["jobs", "get", &Uuid::now_v7().to_string(), "--json"], 4).await;
    let problem: Value = serde_json::from_str(&problem).expect("the problem object");
    assert_eq!(
        (&problem["code"], &problem["status"]),
        (&json!("not_found"), &json!(404))
    );

    let mut stranger = scene.command(&["books", "ls"]);
    stranger.env("COUPONBOOK_API_KEY", "cb_nonsense");
    let ran = ended(stranger, b"").await.expect(3);
    assert!(
        ran.stderr.contains("COUPONBOOK_API_KEY") && !ran.stderr.contains("nonsense"),
        "{}",
        ran.stderr
    );
    let mut reader = scene.command(&["books", "create", "B"]);
    let key = json!({ "name": "k", "scopes": ["read"] });
    let key = scene.admin.post("/v1/api-keys", key).await.expect(201);
    reader.env("COUPONBOOK_API_KEY", key["key"].as_str().unwrap());
    ended(reader, b"").await.expect(3);

    // Nobody works here: the wait is over first, and the job goes on.
    let arguments = ["import", "-", "--book", "Summer", "--wait", "--timeout", "1"];
    let ran = scene.run_with(&arguments, b"code\nA-1\n").await.expect(7);
    assert!(ran.stderr.contains("couponbook jobs watch "), "{}", ran.stderr);
    let id = ran.stderr.trim().rsplit(' ').next().unwrap().to_owned();
    scene.run(&["jobs", "cancel", &id]).await.expect(0);
    scene.run(&["jobs", "cancel", &id]).await.expect(5);
    scene.run(&["jobs", "watch", &id]).await.expect(1);
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_stops_the_waiting_and_not_the_job() {
    let mut scene = Scene::new(Service::without_workers().await).await;
    let started = scene
        .run_with(&["import", "-", "--book", "Summer"], b"code\nA-1\n")
        .await
        .expect(0);
    let id = started.stdout.trim().to_owned();
    let mut child = scene.command(&["jobs", "watch", &id]).spawn().unwrap();
    let pid = child.id().unwrap().to_string();
    // A line every five seconds says that it waits.
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = tokio::time::timeout(PATIENCE, stderr.next_line())
        .await
        .expect("a line")
        .unwrap();
    assert_eq!(first.as_deref(), Some("import: queued"));
    let told = tokio::process::Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .await
        .unwrap();
    assert!(told.success());
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .expect("it ends")
        .unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(130), 0));
    let last = stderr.next_line().await.unwrap().unwrap();
    assert!(last.ends_with(&format!("couponbook jobs watch {id}")), "{last}");
    scene.service.start_workers();
    scene.run(&["jobs", "watch", &id]).await.expect(0);
    scene.service.stop().await;
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
