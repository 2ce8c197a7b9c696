//! The real binary in processes of its own, to be killed.

use std::{
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// How long a process may take until it says that it is ready, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `couponbook`.
pub struct Process {
    child: Child,
    /// The line on which it said that it was ready.
    pub ready: String,
    stderr: Arc<Mutex<String>>,
}

/// Memory of a process, in MiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// What is resident now.
    pub resident: f64,
    /// The most that was since it started.
    pub peak: f64,
}

/// The binary that was built with these tests, beside their own directory; or the one that `COUPONBOOK_BIN` names, which
/// is to be tested as it will be shipped.
///
/// # Panics
/// When it was not built; says how.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("COUPONBOOK_BIN") {
        return path.into();
    }
    let own = std::env::current_exe().expect("a path");
    let path = own
        .parent()
        .and_then(|deps| deps.parent())
        .expect("target/…/deps/it")
        .join("couponbook");
    assert!(
        path.exists(),
        "{} is missing: build it with `cargo build --bins`",
        path.display()
    );
    path
}

/// A command of the binary with nothing of this process's environment but PATH, HOME and PG_BIN.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .args(arguments)
        .env_clear()
        .kill_on_drop(true)
        .stdin(Stdio::null());
    for name in ["PATH", "HOME", "PG_BIN"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

impl Process {
    /// Starts it and waits until it prints a line that says that it is ready.
    ///
    /// # Panics
    /// When it does not; shows what it wrote.
    pub async fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = command(arguments);
        command
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let stderr = Arc::new(Mutex::new(String::new()));
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let kept = Arc::clone(&stderr);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(mut kept) = kept.lock() {
                    kept.push_str(&line);
                    kept.push('\n');
                }
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().expect("piped")).lines();
        let ready = tokio::time::timeout(PATIENCE, async {
            while let Ok(Some(line)) = stdout.next_line().await {
                if line.contains(" ready on ") {
                    return Some(line);
                }
            }
            None
        });
        let ready = ready.await.ok().flatten();
        // Whatever it prints later is read and dropped, so that it never waits for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = stdout.next_line().await {} });
        match ready {
            Some(ready) => Self { child, ready, stderr },
            None => panic!(
                "not ready: {}",
                stderr.lock().map(|text| text.clone()).unwrap_or_default()
            ),
        }
    }

    /// One API process on a free port.
    pub async fn api(database_url: &str) -> Self {
        let environment = [
            ("COUPONBOOK_DATABASE_URL", database_url),
            ("COUPONBOOK_TOKEN_SECRET", crate::SECRET),
            ("COUPONBOOK_SECURITY_BUDGETS", "off"),
            ("COUPONBOOK_RATE_LIMITS", "off"),
            ("COUPONBOOK_LOG", "warn"),
        ];
        Self::start(&["api", "--listen", "127.0.0.1:0"], &environment).await
    }

    /// One worker process for all queues.
    pub async fn worker(database_url: &str) -> Self {
        let environment = [
            ("COUPONBOOK_DATABASE_URL", database_url),
            ("COUPONBOOK_LOG", "warn"),
        ];
        Self::start(&["worker"], &environment).await
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        self.ready.rsplit(' ').next().unwrap_or_default().to_owned()
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Its resident memory now and the most that it ever was, in MiB, where the system tells (Linux).
    pub fn memory(&self) -> Option<Memory> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let mib = |name: &str| {
            let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: f64 = rest.split_whitespace().next()?.parse().ok()?;
            Some(kib / 1024.0)
        };
        Some(Memory {
            resident: mib("VmRSS:")?,
            peak: mib("VmHWM:")?,
        })
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().map(|text| text.clone()).unwrap_or_default()
    }

    /// Kill -9.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("killed");
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Panics
    /// When it does not end by itself.
    pub async fn terminate(mut self) -> std::process::ExitStatus {
        let pid = self.pid().to_string();
        let told = Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .await
            .expect("kill");
        assert!(told.success());
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended
            .unwrap_or_else(|_| panic!("did not end: {}", self.stderr()))
            .expect("waited")
    }
}
