//! The bell between processes: "there is work", "something is finished". A hint, never the truth.
//!
//! Invariant: nothing is lost when a signal is. Workers look every second all the same, and so do waiters.
//!
//! A NOTIFY inside the transaction of every request would take a lock of the whole cluster at its commit and so undo
//! group commit. Instead the bell is rung after the commit: at once within this process, and for the others by one
//! NOTIFY at a time on a connection of its own, so that however many commits are waiting make one signal.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::{
    PgPool,
    postgres::{PgListener, PgPoolOptions},
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::{error::StoreError, id};

/// What a signal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// There is work in some queue.
    Due,
    /// There is work in the queue of assignments: the others need not look.
    Assigns,
    /// A job has ended or got further.
    Done,
}

impl Signal {
    const ALL: [Self; 3] = [Self::Due, Self::Assigns, Self::Done];

    fn channel(self) -> &'static str {
        match self {
            Self::Due => "couponbook_due",
            Self::Assigns => "couponbook_assigns",
            Self::Done => "couponbook_done",
        }
    }
}

/// The shortest time between two NOTIFYs of one process: a bound on what ringing costs the database.
const NOTIFY_PAUSE: Duration = Duration::from_millis(1);

/// How long to wait before the listener connects again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// One process's end of the bell; clones share it.
#[derive(Debug, Clone)]
pub struct Signals {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    due: watch::Sender<u64>,
    assigns: watch::Sender<u64>,
    done: watch::Sender<u64>,
    rung: [AtomicBool; 3],
    wake: Notify,
    /// Sent with each NOTIFY, so that this process need not hear what it rang itself.
    name: String,
    tasks: std::sync::Mutex<JoinSet<()>>,
}

impl Signals {
    /// Starts listening and ringing on two connections of its own. Works without a database, too: then only this
    /// process hears.
    ///
    /// # Errors
    /// When `url` is not a PostgreSQL connection URL.
    pub fn start(url: &str) -> Result<Self, StoreError> {
        let options = url
            .parse::<sqlx::postgres::PgConnectOptions>()?
            .application_name("couponbook-signals");
        let pool = PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(Duration::from_secs(3))
            .connect_lazy_with(options);
        let signals = Self {
            shared: Arc::new(Shared {
                due: watch::Sender::new(0),
                assigns: watch::Sender::new(0),
                done: watch::Sender::new(0),
                rung: [const { AtomicBool::new(false) }; 3],
                wake: Notify::new(),
                name: id::new().to_string(),
                tasks: std::sync::Mutex::new(JoinSet::new()),
            }),
        };
        // The tasks hold weak references, so that they end with the last handle.
        let listening = listen(Arc::downgrade(&signals.shared), pool.clone());
        let ringing = ring(Arc::downgrade(&signals.shared), pool);
        if let Ok(mut tasks) = signals.shared.tasks.lock() {
            tasks.spawn(listening);
            tasks.spawn(ringing);
        }
        Ok(signals)
    }

    /// Rings: at once here, soon elsewhere. Call it after the commit.
    pub fn ring(&self, signal: Signal) {
        self.shared.bump(signal);
        self.shared.rung[signal as usize].store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }

    /// Stops listening and ringing for others: the end of a process. Within it signals go on.
    pub fn stop(&self) {
        if let Ok(mut tasks) = self.shared.tasks.lock() {
            tasks.abort_all();
        }
    }

    /// A counter that changes whenever a signal was heard, and also when some may have been missed.
    pub fn watch(&self, signal: Signal) -> watch::Receiver<u64> {
        self.shared.sender(signal).subscribe()
    }
}

impl Shared {
    fn sender(&self, signal: Signal) -> &watch::Sender<u64> {
        match signal {
            Signal::Due => &self.due,
            Signal::Assigns => &self.assigns,
            Signal::Done => &self.done,
        }
    }

    fn bump(&self, signal: Signal) {
        if signal == Signal::Due {
            self.bump(Signal::Assigns);
        }
        self.sender(signal)
            .send_modify(|generation| *generation = generation.wrapping_add(1));
    }
}

async fn ring(shared: std::sync::Weak<Shared>, pool: PgPool) {
    loop {
        let Some(strong) = shared.upgrade() else { return };
        let woken = tokio::time::timeout(Duration::from_secs(5), strong.wake.notified()).await;
        if woken.is_err() {
            continue;
        }
        let channels: Vec<&str> = Signal::ALL
            .into_iter()
            .filter(|signal| strong.rung[*signal as usize].swap(false, Ordering::AcqRel))
            .map(Signal::channel)
            .collect();
        let name = strong.name.clone();
        drop(strong);
        if channels.is_empty() {
            continue;
        }
        let sent = sqlx::query("SELECT pg_notify(c, $2) FROM unnest($1::text[]) AS c")
            .bind(channels)
            .bind(name)
            .execute(&pool)
            .await;
        if let Err(error) = sent {
            tracing::debug!(%error, "a signal was not sent; the others will look by themselves");
        }
        tokio::time::sleep(NOTIFY_PAUSE).await;
    }
}

async fn listen(shared: std::sync::Weak<Shared>, pool: PgPool) {
    while shared.strong_count() > 0 {
        if let Err(error) = listen_once(&shared, &pool).await {
            tracing::debug!(%error, "the listener lost its connection and connects again");
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn listen_once(shared: &std::sync::Weak<Shared>, pool: &PgPool) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.ignore_pool_close_event(true);
    listener.listen_all(Signal::ALL.map(Signal::channel)).await?;
    // What was rung before this moment may have been missed.
    bump_all(shared);
    loop {
        let heard = tokio::time::timeout(Duration::from_secs(5), listener.try_recv()).await;
        match heard {
            Err(_) if shared.strong_count() == 0 => return Ok(()),
            Err(_) => {}
            Ok(Ok(Some(notification))) => {
                let Some(shared) = shared.upgrade() else {
                    return Ok(());
                };
                for signal in Signal::ALL {
                    if signal.channel() == notification.channel() && notification.payload() != shared.name {
                        shared.bump(signal);
                    }
                }
            }
            // The connection was lost: what was rung meanwhile is lost with it.
            Ok(Ok(None)) => bump_all(shared),
            Ok(Err(error)) => {
                bump_all(shared);
                return Err(error);
            }
        }
    }
}

fn bump_all(shared: &std::sync::Weak<Shared>) {
    if let Some(shared) = shared.upgrade() {
        for signal in Signal::ALL {
            shared.bump(signal);
        }
    }
}
