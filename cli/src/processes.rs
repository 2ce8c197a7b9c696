//! The processes: `up`, `api`, `worker`, `migrate`.
//!
//! Invariant: SIGTERM and SIGINT drain: the process says on /readyz that it is ending, takes no new work, ends what is
//! under way within a bound, and stops its own database last. A second signal ends it at once; nothing is lost by that
//! either, only rolled back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use coupon_api::{
    App,
    metrics::MetricsServer,
    server::{Limits, Server},
};
use coupon_core::{
    config::{Secret, Settings},
    db::{self, Db, Role},
    job::{Queue, signals::Signals},
    metrics::exposition::Exposition,
    user::{self, setup::setup_token, token::TokenKeys},
};
use coupon_pg::Embedded;
use coupon_worker::Workers;
use tokio::signal::unix::{SignalKind, signal};

use crate::{admin, demo, print, say, secrets};

/// How long one waits for another process that is migrating.
const MIGRATE_PATIENCE: Duration = Duration::from_secs(60);

/// How long running requests and then running steps may take to end: together below the 30 s that supervisors grant.
const SERVER_DRAIN: Duration = Duration::from_secs(14);
const WORKER_DRAIN: Duration = Duration::from_secs(14);

fn database_url(settings: &Settings) -> anyhow::Result<&str> {
    match &settings.database_url {
        Some(url) => Ok(url.reveal()),
        None => bail!(
            "COUPONBOOK_DATABASE_URL is not set: this command needs a database; only `couponbook up` brings its own"
        ),
    }
}

/// Everything in one process.
pub(crate) async fn up(mut settings: Settings, with_demo: bool) -> anyhow::Result<()> {
    if with_demo && !settings.listen.ip().is_loopback() {
        bail!(
            "--demo makes accounts whose passwords everybody knows, so it listens on a loopback address only"
        );
    }
    let stop = Stop::new()?;
    let dir = secrets::data_dir(&settings)?;
    let mut embedded = None;
    if settings.database_url.is_none() {
        secrets::make_data_dir(&dir)?;
        say(&format!("starting a private PostgreSQL in {}", dir.display()));
        let options = coupon_pg::Options {
            data_dir: dir.join("postgres"),
            durable: true,
            settings: Vec::new(),
            bin_dir: settings.pg_bin.clone(),
        };
        let server = Embedded::start(options)
            .await
            .context("the private PostgreSQL did not start")?;
        settings.database_url = Some(Secret::new(server.url()));
        embedded = Some(server);
    }
    let served = async {
        if settings.token_secret.is_none() {
            secrets::make_data_dir(&dir)?;
        }
        let keys = secrets::keys_kept_in(&settings, &dir)?;
        let url = database_url(&settings)?.to_owned();
        migrate(&settings).await?;
        let signals = Signals::start(&url)?;
        let workers = Workers::start(&url, &Queue::ALL, &signals, settings.retention())?;
        let demo = if with_demo {
            Some(demo::prepare(&url, &signals).await?)
        } else {
            None
        };
        let database = async {
            match &embedded {
                Some(server) => Some(server.exited().await),
                None => std::future::pending().await,
            }
        };
        let served = tokio::select! {
            served = serve(&settings, &url, keys, signals.clone(), &stop, demo) => served,
            status = database => Err(anyhow::anyhow!("the private PostgreSQL has ended ({status:?})")),
        };
        workers.drain(WORKER_DRAIN).await;
        signals.stop();
        served
    };
    let served = tokio::select! {
        served = served => served,
        () = stop.at_once() => Err(anyhow::anyhow!("stopped at once by a second signal")),
    };
    if let Some(server) = embedded {
        server.stop().await;
    }
    served
}

/// The HTTP role alone.
pub(crate) async fn api(settings: Settings) -> anyhow::Result<()> {
    let stop = Stop::new()?;
    let url = database_url(&settings)?.to_owned();
    let keys = secrets::keys(&settings)?;
    let db = Db::connect(&url, Role::Api, 1)?;
    if db::pending_migrations(&db)
        .await
        .context("the database does not answer")?
        == 0
    {
        admin::ensure_first(&settings, &db).await?;
    }
    db.close().await;
    let signals = Signals::start(&url)?;
    tokio::select! {
        served = serve(&settings, &url, keys, signals, &stop, None) => served,
        () = stop.at_once() => bail!("stopped at once by a second signal"),
    }
}

async fn serve(
    settings: &Settings,
    url: &str,
    keys: TokenKeys,
    signals: Signals,
    stop: &Stop,
    demo: Option<demo::Demo>,
) -> anyhow::Result<()> {
    allow_many_connections();
    let limits = Limits {
        connections: settings.connections,
        drain: SERVER_DRAIN,
        ..Limits::default()
    };
    let server = Server::bind(settings.listen, limits)
        .await
        .with_context(|| format!("{} cannot be listened on", settings.listen))?;
    let address = server.local_addr()?;
    let setup = first_admin_hint(url, &keys, address).await;
    let app = App::new(url, settings, keys, signals)?;
    let metrics = metrics_server(settings, app.exposition().clone()).await?;
    let draining = Arc::new(AtomicBool::new(false));
    let endpoint = coupon_api::application(app.clone(), Arc::clone(&draining));
    print(&format!("couponbook ready on http://{address}"));
    if let Some(hint) = setup {
        say(&hint);
    }
    if let Some(demo) = demo {
        demo.explain(address);
    }
    let shutdown = async {
        stop.told().await;
        draining.store(true, Ordering::Release);
        say("ending: no new requests, waiting for those under way");
    };
    let serving = server.serve(endpoint, shutdown);
    let (cut, ()) = tokio::join!(serving, tell_metrics(metrics, stop));
    if cut > 0 {
        tracing::warn!(connections = cut, "connections were cut at the end of the drain");
    }
    app.close().await;
    Ok(())
}

/// The listener of /metrics, if there is to be one of its own; says where.
async fn metrics_server(
    settings: &Settings,
    exposition: Exposition,
) -> anyhow::Result<Option<MetricsServer>> {
    let Some(address) = settings.metrics_listen else {
        return Ok(None);
    };
    let server = MetricsServer::bind(address, exposition)
        .await
        .with_context(|| format!("{address} cannot be listened on"))?;
    say(&format!("metrics on http://{}/metrics", server.local_addr()?));
    Ok(Some(server))
}

/// Serves it, if there is one, until the process is told to end.
async fn tell_metrics(server: Option<MetricsServer>, stop: &Stop) {
    if let Some(server) = server {
        server.serve(stop.told()).await;
    }
}

/// Raises the number of files that this process may open to what the system grants: each connection is one, and many
/// systems begin with 1,024.
fn allow_many_connections() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// How to make the first administrator, while there is none. A database that does not answer now is no reason not to
/// start.
async fn first_admin_hint(url: &str, keys: &TokenKeys, address: std::net::SocketAddr) -> Option<String> {
    let db = Db::connect(url, Role::Api, 1).ok()?;
    let mut connection = db.pool().acquire().await.ok()?;
    let has_admin = user::has_admin(&mut connection).await.ok()?;
    let token = setup_token(keys);
    // Behind the #, which browsers send to nobody.
    let page = if coupon_api::web::is_built() {
        format!("http://{address}/setup#token={token}\n\nor without a browser:\n\n  ")
    } else {
        String::new()
    };
    (!has_admin).then(|| {
        format!(
            "there is no administrator yet; make one, once, with a password of your own:\n\n  {page}\
             curl http://{address}/v1/setup -H 'Content-Type: application/json' \\\n    \
             -d '{{\"token\":\"{token}\",\"email\":\"you@example.com\",\"name\":\"You\",\"password\":\"…\"}}'\n"
        )
    })
}

/// The workers alone.
pub(crate) async fn worker(settings: Settings, queues: Vec<Queue>) -> anyhow::Result<()> {
    let stop = Stop::new()?;
    let url = database_url(&settings)?;
    let signals = Signals::start(url)?;
    let workers = Workers::start(url, &queues, &signals, settings.retention())?;
    let exposition = Exposition::new(Db::connect(url, Role::Api, 1)?);
    let metrics = metrics_server(&settings, exposition).await?;
    let names: Vec<&str> = queues.iter().map(|queue| queue.name()).collect();
    print(&format!("couponbook worker ready on {}", names.join(",")));
    tell_metrics(metrics, &stop).await;
    stop.told().await;
    tokio::select! {
        () = workers.drain(WORKER_DRAIN) => Ok(()),
        () = stop.at_once() => bail!("stopped at once by a second signal"),
    }
}

/// Brings the schema up to date and makes the first administrator.
pub(crate) async fn migrate(settings: &Settings) -> anyhow::Result<()> {
    let url = database_url(settings)?;
    db::migrate(url, MIGRATE_PATIENCE).await?;
    let db = Db::connect(url, Role::Api, 1)?;
    let made = admin::ensure_first(settings, &db).await;
    db.close().await;
    made
}

/// The OpenAPI document; needs no database.
pub(crate) fn openapi(settings: &Settings) -> anyhow::Result<String> {
    let url = "postgres://localhost/none"; // never connected
    let nothing_is_signed: [u8; 32] = std::array::from_fn(|n| n as u8);
    let keys = TokenKeys::new(&nothing_is_signed)?;
    let app = App::new(url, settings, keys, Signals::start(url)?)?;
    Ok(coupon_api::openapi(&app))
}

/// The signals that end a process.
struct Stop {
    count: tokio::sync::watch::Receiver<u8>,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        let (tell, count) = tokio::sync::watch::channel(0);
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                tell.send_modify(|count: &mut u8| *count = count.saturating_add(1));
            }
        });
        Ok(Self { count })
    }

    /// Waits for the first signal.
    async fn told(&self) {
        let _ = self.count.clone().wait_for(|count| *count >= 1).await;
    }

    /// Waits for the second.
    async fn at_once(&self) {
        let _ = self.count.clone().wait_for(|count| *count >= 2).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_document_needs_neither_a_secret_nor_a_database() {
        let document = openapi(&Settings::default()).unwrap();
        assert!(document.contains("\"/v1/coupons/redeem/{code}\""));
    }
}
