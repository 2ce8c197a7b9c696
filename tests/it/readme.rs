//! The documents, held to the code: their commands run, their tables are complete, their links lead somewhere.
//!
//! Blocks ```` ```sh ```` are run, those of a file in order in one `sh -eu`, against a real `couponbook up --demo`; blocks
//! ```` ```python ```` among them by `python3`, where there is one. A line
//! `# prints: a … b` promises that a and behind it b come next in what the block puts out.
//! A block ```` ```sh start ```` is the command that starts what the others talk to: `./x test` sets [`START`] to it once
//! the build of a release is there, so that the walk is done as a stranger does it; without it the binary beside this
//! test is started.
//! A block ```` ```sh exempt ```` is not run; each of its commands stands in [`EXEMPT`] with its reason.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, too: a panic says where it failed"
)]

mod tables;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use coupon_tests::process;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{processes::servers_in, truth::report};

/// How long a start, a document's commands or an end may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// The address in the documents.
const BASE: &str = "http://127.0.0.1:8080";

/// The variable with the command of the README that starts the service.
const START: &str = "COUPONBOOK_RUN";

/// Commands of the documents that are not run, and why.
const EXEMPT: [(&str, &str); 20] = [
    ("cp .env", "writes into the work tree; deploy.rs reads both files"),
    (
        "docker ",
        "needs Docker; deploy.rs runs what the file starts, `./x image` what the image is made of",
    ),
    ("./x dev", "the same service as `./x run`, built quickly"),
    ("./x test", "it runs this test"),
    ("./x crash", "the same tests of faults, for an hour"),
    (
        "./x bench",
        "measures for minutes; its results are in bench/results",
    ),
    ("./x fuzz", "needs Python and a network once"),
    ("./x image", "builds for minutes"),
    ("./x build", "the release build"),
    ("./x lint", "run by .ci/run"),
    ("./x openapi", "writes into the work tree"),
    ("bash .ci/run", "it runs this test"),
    (
        "COUPONBOOK_ADMIN_EMAIL=",
        "the release build; life.rs starts processes with settings",
    ),
    (
        "target/release/couponbook",
        "the release build; the same command line is parsed below",
    ),
    (
        "couponbook ",
        "needs a database of one's own; processes are proved by the other tests",
    ),
    (
        "export COUPONBOOK_URL=",
        "needs a service of one's own; cli.rs runs the client commands",
    ),
    ("cd web", "wants Node; `./x test` runs the tests of web/"),
    ("pg_dump", "needs a database of one's own"),
    ("pg_restore", "needs a database of one's own"),
    ("psql", "needs a database of one's own"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Markdown file for readers, by its path from the root.
fn documents() -> Vec<String> {
    let mut found = Vec::new();
    for dir in ["", "docs", "docs/decisions"] {
        let entries = fs::read_dir(root().join(dir)).unwrap_or_else(|error| panic!("{dir}: {error}"));
        for entry in entries {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                found.push(format!("{dir}/{name}").trim_start_matches('/').to_owned());
            }
        }
    }
    found.sort();
    assert!(found.len() > 10, "{found:?}");
    found
}

/// The fenced blocks of a document: what stands behind the fence, and the lines.
fn blocks(text: &str) -> Vec<(String, Vec<String>)> {
    let mut blocks: Vec<(String, Vec<String>)> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        match line.strip_prefix("```") {
            Some(_) if open => open = false,
            Some(info) => {
                blocks.push((info.to_owned(), Vec::new()));
                open = true;
            }
            None if open => blocks.last_mut().unwrap().1.push(line.to_owned()),
            None => {}
        }
    }
    assert!(!open, "a fence is not closed");
    blocks
}

/// A `couponbook up --demo` on a free port in a fresh data directory.
struct Demo {
    child: Child,
    url: String,
    /// What it says to the person who started it.
    greeting: String,
    dir: tempfile::TempDir,
}

impl Demo {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The database's user has its directory below.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let mut command = match std::env::var(START) {
            Ok(start) => as_a_stranger(&start),
            Err(_) => process::command(&["up", "--demo"]),
        };
        let mut child = command
            .args(["--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir.path().join("data"))
            .env("COUPONBOOK_LOG", "error")
            .stdout(Stdio::piped())
            .process_group(0) // of its own, as a shell gives to what it starts
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut greeting = String::new();
        let greeted = async {
            // Its last line is the second curl and an empty line behind it.
            while greeting.matches("curl").count() < 2 || !greeting.ends_with("\n\n") {
                let line = lines.next_line().await.unwrap().expect("it goes on talking");
                greeting.push_str(&line);
                greeting.push('\n');
            }
        };
        timeout(PATIENCE, greeted).await.expect("ready in time");
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let ready = greeting.lines().next().unwrap();
        let url = ready
            .strip_prefix("couponbook ready on ")
            .expect(ready)
            .to_owned();
        Self {
            child,
            url,
            greeting,
            dir,
        }
    }

    /// Runs blocks as one script; gives what each put out.
    async fn run(&self, blocks: &[String]) -> Vec<String> {
        let mut script = String::new();
        for block in blocks {
            script.push_str("printf '\\036'\n");
            script.push_str(&block.replace(BASE, &self.url));
        }
        let path = self.dir.path().join("script.sh");
        fs::write(&path, &script).unwrap();
        let run = Command::new("sh")
            .arg("-eu")
            .arg(&path)
            .current_dir(self.dir.path())
            .output();
        let output = timeout(PATIENCE, run).await.expect("it ends in time").unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{err}\n{out}");
        let outputs: Vec<String> = out.split('\u{1e}').skip(1).map(str::to_owned).collect();
        assert_eq!(outputs.len(), blocks.len(), "{out}");
        outputs
    }

    /// Ends it as Ctrl-C does: the whole group hears of it, its PostgreSQL included.
    async fn stop(mut self) {
        let group = format!("-{}", self.child.id().unwrap());
        assert!(
            Command::new("kill")
                .args(["-INT", "--", &group])
                .status()
                .await
                .unwrap()
                .success()
        );
        let status = timeout(PATIENCE, self.child.wait())
            .await
            .expect("it ends")
            .unwrap();
        assert!(status.success(), "{status}");
        let left = servers_in(self.dir.path());
        assert!(left.is_empty(), "it leaves a server behind: {left:?}");
    }
}

/// A command line of the documents, at the root of the repository, in the caller's environment without what cargo and
/// this run of the tests put there.
fn as_a_stranger(line: &str) -> Command {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command
        .args(words)
        .current_dir(root())
        .kill_on_drop(true)
        .stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let ours = [
            "COUPONBOOK_",
            "NEXTEST",
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_EXE_",
        ];
        if ours
            .iter()
            .any(|prefix| name.to_string_lossy().starts_with(prefix))
        {
            command.env_remove(name);
        }
    }
    command
}

/// Asserts that the pieces of a promise (`a … b`) stand in `output`, in order; gives what is behind them.
fn keep<'a>(promise: &str, output: &'a str) -> &'a str {
    let mut rest = output;
    for piece in promise.split(" … ") {
        let at = rest
            .find(piece)
            .unwrap_or_else(|| panic!("{piece:?} is promised; printed was\n{rest}"));
        rest = &rest[at + piece.len()..];
    }
    rest
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_documents_do_what_they_promise() {
    let demo = Demo::start().await;
    let python = Command::new("python3").arg("--version").output().await.is_ok();
    if !python {
        report("no python3: what the documents say in Python is not tried");
    }
    for document in ["README.md", "docs/getting-started.md"] {
        let scripts: Vec<String> = blocks(&read(document))
            .into_iter()
            .filter_map(|(info, lines)| match info.as_str() {
                "sh" => Some(lines.join("\n") + "\n"),
                "python" if python => Some(format!("python3 - <<'PYTHON'\n{}\nPYTHON\n", lines.join("\n"))),
                _ => None,
            })
            .collect();
        let outputs = demo.run(&scripts).await;
        let mut promises = 0;
        for (script, output) in scripts.iter().zip(&outputs) {
            let mut rest = output.as_str();
            for promise in script.lines().filter_map(|line| line.strip_prefix("# prints: ")) {
                rest = keep(promise, rest);
                promises += 1;
            }
        }
        assert!(promises >= 6, "{document} promises something");
    }

    // What the demo prints works as it is printed, as often as one likes.
    let (_, rest) = demo.greeting.split_once("Assign a coupon").expect("a command");
    let (_, rest) = rest.split_once("\n\n").unwrap();
    let (assign, rest) = rest.split_once("\n\n").unwrap();
    let (_, jobs) = rest.split_once("\n\n").unwrap();
    let assign = format!("{assign}\n");
    let outputs = demo.run(&[assign.clone(), assign, format!("{jobs}\n")]).await;
    keep("\"state\":\"succeeded\" … \"assigned\":1", &outputs[0]);
    keep("\"state\":\"succeeded\" … \"assigned\":1", &outputs[1]);
    keep("\"state\":\"partially_succeeded\"", &outputs[2]);

    // The README shows the greeting as it is, but for the address and the key.
    let shown = blocks(&read("README.md"))
        .into_iter()
        .find(|(info, _)| info == "text")
        .expect("the greeting")
        .1;
    for line in shown {
        let line = line.replace(BASE, &demo.url).replace('…', "");
        assert!(
            demo.greeting.contains(&line),
            "{line:?} is not in\n{}",
            demo.greeting
        );
    }
    demo.stop().await;
}

#[test]
fn the_readme_starts_the_service_with_the_command_that_the_walk_is_given() {
    let starts: Vec<String> = documents()
        .iter()
        .flat_map(|document| blocks(&read(document)))
        .filter(|(info, _)| info == "sh start")
        .flat_map(|(_, lines)| lines)
        .collect();
    assert_eq!(starts, ["./x run"]);
    assert!(read("x").contains(&format!("{START}='{}'", starts[0])));
}

#[test]
fn every_command_is_run_or_exempt_with_a_reason() {
    for document in documents() {
        let is_run = ["README.md", "docs/getting-started.md"].contains(&document.as_str());
        for (info, lines) in blocks(&read(&document)) {
            let known = matches!(
                info.as_str(),
                "sh start" | "sh exempt" | "text" | "json" | "mermaid" | "rust" | "sql" | "toml"
            );
            assert!(
                known || (["sh", "python"].contains(&info.as_str()) && is_run),
                "{document}: a block of {info:?}"
            );
            if info != "sh exempt" {
                continue;
            }
            let mut goes_on = false;
            for line in lines {
                let begins = !goes_on && !line.is_empty() && !line.starts_with(['#', ' ']);
                goes_on = line.ends_with('\\');
                let listed = EXEMPT.iter().any(|(command, _)| line.starts_with(command));
                assert!(
                    !begins || listed,
                    "{document}: {line:?} is neither run nor exempt"
                );
            }
        }
    }
}
