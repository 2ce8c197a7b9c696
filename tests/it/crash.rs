//! The service in processes of its own on a durable PostgreSQL, while processes, connections and the server are killed.
//!
//! Clients note what they did and saw ([`History`]); in the end every promise must hold and the notes must fit the
//! database. `./x crash` runs the figures of docs/ (hundreds of kills, a hundred thousand jobs), `COUPONBOOK_SEED` repeats
//! a run's random choices.

#![allow(clippy::unwrap_used, reason = "what a test cannot read fails it")]

mod deadly_job;
mod frozen;
mod restarts;
mod server;
mod workers;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use coupon_core::{
    caller::Scope,
    db::{self, Db, Role},
};
use coupon_pg::{Embedded, Options};
use coupon_tests::{
    Client,
    history::{Deed, History, Manner, Saw},
    process::Process,
    seed,
};
use serde_json::json;
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::{process::Command, sync::watch, task::JoinHandle};
use uuid::Uuid;

use crate::{
    queue::id,
    truth::{self, Dice, report},
};

/// How long anything may take that is to happen by itself: nobody has to be quick here, only to come. How quick it was is
/// among the figures that a run prints.
const PATIENCE: Duration = Duration::from_secs(240);

/// A durable server of its own, migrated, with users and an API key.
pub(crate) struct Cluster {
    server: Option<Embedded>,
    dir: TempDir,
    pub(crate) url: String,
    /// For looking; its connections do not bear the service's name.
    pub(crate) pool: PgPool,
    key: String,
    pub(crate) users: Vec<Uuid>,
}

impl Cluster {
    pub(crate) async fn start(users: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("opened");
        let server = Embedded::start(options(dir.path().join("pg")))
            .await
            .expect("a server");
        let url = server.url();
        db::migrate(&url, Duration::from_secs(60))
            .await
            .expect("migrated");
        let db = Db::connect(&url, Role::Worker, 1).expect("a URL");
        let key = seed::key(&db, &[Scope::Manage]).await;
        let users = seed::users(&db, users).await;
        db.close().await;
        let pool = PgPool::connect(&url).await.expect("a connection");
        Self {
            server: Some(server),
            dir,
            url,
            pool,
            key,
            users,
        }
    }

    /// The server crashes and starts again.
    async fn crash_server(&mut self) {
        self.server.take().expect("running").stop_immediately().await;
        let again = Embedded::start(options(self.dir.path().join("pg")))
            .await
            .expect("a server");
        assert_eq!(again.url(), self.url);
        self.server = Some(again);
    }

    pub(crate) fn client(&self, base: &str) -> Client {
        Client::new(base).key(&self.key)
    }

    /// A book with so many codes and at most three coupons a user.
    async fn book(&self, client: &Client, codes: usize) -> Uuid {
        let book_id = client.book(json!({ "max_assignments_per_user": 3 })).await;
        let csv = format!("code\n{}\n", seed::codes(codes).join("\n"));
        let path = format!("/v1/books/{book_id}/codes/import");
        let job = client.post_csv(&path, csv).await.expect(202);
        let job = client.job_end(&id(&job).to_string()).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        book_id
    }

    /// Assigns of one or two coupons to random users.
    fn requests(&self, dice: &mut Dice, book_id: Uuid, count: usize) -> Vec<Deed> {
        (0..count)
            .map(|_| {
                let user_id = self.users[dice.below(self.users.len())];
                Deed::Assign(book_id, user_id, 1 + dice.below(4) as u32 / 3)
            })
            .collect()
    }

    async fn finished(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM jobs WHERE kind = 'assign' AND finished_at IS NOT NULL")
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// Waits until so many assigns have ended.
    async fn progress(&self, count: usize) {
        truth::eventually(
            "progress",
            PATIENCE,
            || self.finished(),
            |done| *done >= count as i64,
        )
        .await;
    }

    /// Waits until more of so many assigns has ended than `before`, if that was not all; gives how long it took.
    async fn goes_on(&self, since: Instant, before: i64, jobs: usize) -> Duration {
        if before >= jobs as i64 {
            return Duration::ZERO;
        }
        let more = |done: &i64| *done > before;
        truth::eventually("work goes on", PATIENCE, || self.finished(), more).await;
        since.elapsed()
    }

    /// Nothing lost, nothing doubled: every job has ended, every promise holds, and what clients saw is what is there.
    async fn settles(&self, history: &History) {
        truth::all_jobs_end(&self.pool, PATIENCE).await;
        truth::holds(&self.pool).await;
        let mut connection = self.pool.acquire().await.unwrap();
        let faults = history.faults(&mut connection).await;
        assert!(
            faults.is_empty(),
            "{} faults: {:#?}",
            faults.len(),
            &faults[..faults.len().min(20)]
        );
        let (given_up, most): (i64, i32) = sqlx::query_as(
            "SELECT count(*) FILTER (WHERE error_code = 'attempts_exhausted'), coalesce(max(attempts), 0)
             FROM jobs WHERE kind = 'assign'",
        )
        .fetch_one(&mut *connection)
        .await
        .unwrap();
        let open: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'couponbook%'
                 AND state LIKE 'idle in transaction%' AND state_change < now() - interval '2 s'",
        )
        .fetch_one(&mut *connection)
        .await
        .unwrap();
        report(&format!("{}; most attempts {most}", history.summary()));
        assert_eq!((given_up, open), (0, 0));
    }

    pub(crate) async fn stop(mut self, processes: Vec<Process>) {
        for process in processes {
            process.terminate().await;
        }
        self.pool.close().await;
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }
}

fn options(data_dir: PathBuf) -> Options {
    Options {
        data_dir,
        durable: true,
        settings: Vec::new(),
        bin_dir: None,
    }
}

/// A cluster at work: an API process, two workers, and clients who ask for coupons of a book.
struct Busy {
    cluster: Cluster,
    api: Process,
    workers: Vec<Process>,
    history: Arc<History>,
    tills: Option<Tills>,
    loading: JoinHandle<()>,
}

impl Busy {
    /// So many assigns.
    async fn start(dice: &mut Dice, jobs: usize) -> Self {
        Self::begin(dice, jobs, false).await
    }

    /// The same, and clients at the till.
    async fn start_with_tills(dice: &mut Dice, jobs: usize) -> Self {
        Self::begin(dice, jobs, true).await
    }

    async fn begin(dice: &mut Dice, jobs: usize, with_tills: bool) -> Self {
        let cluster = Cluster::start(jobs / 2).await;
        let api = Process::api(&cluster.url).await;
        let client = cluster.client(&api.url());
        let workers = vec![
            Process::worker(&cluster.url).await,
            Process::worker(&cluster.url).await,
        ];
        // A little less than is asked for: the last are refused, and nobody gets what is not there.
        let book_id = cluster.book(&client, jobs).await;
        let history = Arc::new(History::default());
        let tills = if with_tills {
            Some(Tills::open(&cluster, &history, &client, dice).await)
        } else {
            None
        };
        let loading = load(&history, &client, cluster.requests(dice, book_id, jobs));
        Self {
            cluster,
            api,
            workers,
            history,
            tills,
            loading,
        }
    }

    /// Waits until the load is over: every request was answered, whatever was killed, and everything fits.
    async fn ends(self) {
        self.loading.await.expect("the load");
        if let Some(tills) = self.tills {
            tills.close().await;
        }
        assert_eq!(self.history.unanswered(), 0, "clients see only 503");
        self.cluster.settles(&self.history).await;
        let processes = self.workers.into_iter().chain([self.api]).collect();
        self.cluster.stop(processes).await;
    }
}

/// Sends requests from 16 clients at once, each with a key of its own and again and again until it is accepted.
fn load(history: &Arc<History>, client: &Client, requests: Vec<Deed>) -> JoinHandle<()> {
    let (history, client, lanes) = (Arc::clone(history), client.clone(), 16);
    tokio::spawn(async move {
        let mut tasks = Vec::new();
        for lane in 0..lanes {
            let mine: Vec<Deed> = requests.iter().skip(lane).step_by(lanes).cloned().collect();
            let (history, client) = (Arc::clone(&history), client.clone());
            tasks.push(tokio::spawn(async move {
                for deed in mine {
                    let saw = history.call(&client, deed, Manner::Insisting(PATIENCE)).await;
                    assert!(matches!(saw, Saw::Done(_)), "not accepted: {saw:?}");
                }
            }));
        }
        for task in tasks {
            task.await.expect("a client");
        }
    })
}

/// Clients at the till, who get into each other's way: they lock, and give back, or use, or forget it. Some insist, some
/// ask once. Until they are told to stop.
struct Tills {
    stop: watch::Sender<bool>,
    lanes: Vec<JoinHandle<()>>,
}

impl Tills {
    async fn open(cluster: &Cluster, history: &Arc<History>, client: &Client, dice: &mut Dice) -> Self {
        const CODES: usize = 24;
        let book = json!({ "lock_seconds": 5, "redemptions_per_coupon": 100_000 });
        let book_id = client.book(book).await;
        let codes: Vec<String> = (0..CODES).map(|number| format!("TILL-{number}")).collect();
        client.codes(book_id, &codes).await;
        for user_id in cluster.users.iter().cycle().take(CODES) {
            let deed = Deed::Assign(book_id, *user_id, 1);
            history.call(client, deed, Manner::Insisting(PATIENCE)).await;
        }
        truth::all_jobs_end(&cluster.pool, PATIENCE).await;
        let (stop, stopped) = watch::channel(false);
        let lane = |mut dice: Dice| {
            let (history, client, stopped) = (Arc::clone(history), client.clone(), stopped.clone());
            let codes = codes.clone();
            tokio::spawn(async move {
                while !*stopped.borrow() {
                    let code = &codes[dice.below(codes.len())];
                    let manner = match dice.below(3) {
                        0 => Manner::Once,
                        _ => Manner::Insisting(PATIENCE),
                    };
                    let lock = Deed::Lock(book_id, code.clone());
                    if let Saw::Done(lock) = history.call(&client, lock, manner).await {
                        let token = lock["lock_token"].as_str().expect("a token").to_owned();
                        let next = match dice.below(5) {
                            0 => None,
                            1 | 2 => Some(Deed::Unlock(book_id, code.clone(), token)),
                            _ => Some(Deed::Redeem(book_id, code.clone(), token)),
                        };
                        if let Some(next) = next {
                            history.call(&client, next, manner).await;
                        }
                    }
                    tokio::time::sleep(dice.millis(20)).await; // the load is the assigns
                }
            })
        };
        let lanes = (0..6).map(|_| lane(dice.fork())).collect();
        Self { stop, lanes }
    }

    async fn close(self) {
        self.stop.send_replace(true);
        for lane in self.lanes {
            lane.await.expect("a client at the till");
        }
    }
}

/// Random moments of a load, as numbers of ended jobs in order.
fn moments(dice: &mut Dice, how_many: usize, jobs: usize) -> Vec<usize> {
    let mut moments: Vec<usize> = (0..how_many).map(|_| dice.below(jobs * 9 / 10)).collect();
    moments.sort_unstable();
    moments
}

async fn signal(process: &Process, name: &str) {
    let told = Command::new("kill")
        .args([name, &process.pid().to_string()])
        .status();
    assert!(told.await.expect("kill").success());
}
