//! The stand: a durable PostgreSQL of its own, the service as a process on it, a key and users.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use coupon_core::{
    caller::{Access, Caller, Role as UserRole, Scope},
    db::{self, Db, Role},
    id,
    user::{
        self, NewUser,
        api_key::{self, NewApiKey},
    },
};
use coupon_pg::{Embedded, Options};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection, PgPool};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use uuid::Uuid;

use crate::load::{Connection, request};

/// Users that coupons are given to.
const USERS: usize = 1_000;

/// How long a job or a start may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Memory of a process, in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// What is resident now.
    pub resident: f64,
    /// The most that was since it started.
    pub peak: f64,
}

/// Everything that is measured, running.
pub(crate) struct Stand {
    server: Embedded,
    service: Child,
    binary: PathBuf,
    dir: TempDir,
    /// PostgreSQL's own programs.
    pub bin_dir: PathBuf,
    /// The database.
    pub url: String,
    /// For seeding and looking.
    pub pool: PgPool,
    /// For the use cases.
    pub db: Db,
    /// Where the service listens.
    pub address: SocketAddr,
    /// A key with every scope.
    pub key: String,
    /// Accounts.
    pub users: Vec<Uuid>,
}

impl Stand {
    pub(crate) async fn start(binary: &Path, settings: Vec<(String, String)>) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let server = Embedded::start(Options {
            data_dir: dir.path().join("pg"),
            durable: true,
            settings,
            bin_dir: None,
        })
        .await?;
        let url = server.url();
        db::migrate(&url, PATIENCE).await?;
        let db = Db::connect(&url, Role::Worker, 4)?;
        let pool = PgPool::connect(&url).await?;
        sqlx::raw_sql("CREATE SCHEMA bench; CREATE TABLE bench.floor (id bigint GENERATED ALWAYS AS IDENTITY, value int)")
            .execute(&pool)
            .await?;
        let key = make_key(&db).await?;
        let users = insert_users(&pool, USERS).await?;
        let (service, address) = start_service(binary, &url, dir.path()).await?;
        Ok(Self {
            server,
            service,
            binary: binary.to_owned(),
            dir,
            bin_dir: coupon_pg::find_binaries()?,
            url,
            pool,
            db,
            address,
            key,
            users,
        })
    }

    pub(crate) async fn stop(mut self) {
        let _ = self.service.kill().await;
        self.db.close().await;
        self.pool.close().await;
        self.server.stop().await;
    }

    /// More accounts.
    pub(crate) async fn more_users(&self, count: usize) -> anyhow::Result<Vec<Uuid>> {
        insert_users(&self.pool, count).await
    }

    /// Ends the service; the database stays.
    pub(crate) async fn stop_service(&mut self) -> anyhow::Result<()> {
        Ok(self.service.kill().await?)
    }

    /// Starts it again, at another address.
    pub(crate) async fn start_service(&mut self) -> anyhow::Result<()> {
        (self.service, self.address) = start_service(&self.binary, &self.url, self.dir.path()).await?;
        Ok(())
    }

    /// Headers of a request with the key.
    pub(crate) fn headers(&self) -> [(&str, &str); 1] {
        [("X-Api-Key", self.key.as_str())]
    }

    /// One request, outside of what is measured.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> anyhow::Result<Value> {
        let mut connection = Connection::open(self.address).await?;
        let answer = connection
            .ask(&request(method, path, &self.headers(), body))
            .await?;
        let value: Value = serde_json::from_slice(&answer.body)?;
        if answer.status >= 300 {
            bail!("{method} {path}: {} {value}", answer.status);
        }
        Ok(value)
    }

    /// A new book.
    pub(crate) async fn book(&self, rules: Value) -> anyhow::Result<Uuid> {
        let mut body = serde_json::json!({ "name": "Bench" });
        if let (Some(body), Value::Object(rules)) = (body.as_object_mut(), rules) {
            body.extend(rules);
        }
        let book = self.ask("POST", "/v1/books", &body.to_string()).await?;
        Ok(book["id"].as_str().context("no id")?.parse()?)
    }

    /// Unassigned codes straight into a book, with random places in its draw.
    pub(crate) async fn fill(&self, book_id: Uuid, count: u32) -> anyhow::Result<()> {
        sqlx::query(
            "INSERT INTO coupons (book_id, code_key, draw_key, redemptions_allowed)
             SELECT $1, 'C' || lpad(n::text, 9, '0'), (random() * 4611686018427387904)::bigint, 1
             FROM generate_series(1, $2) AS n",
        )
        .bind(book_id)
        .bind(i32::try_from(count)?)
        .execute(&self.pool)
        .await?;
        sqlx::raw_sql("ANALYZE coupons").execute(&self.pool).await?;
        Ok(())
    }

    /// Empties the table of coupons, for room: each figure measures books of its own.
    pub(crate) async fn forget_coupons(&self) -> anyhow::Result<()> {
        sqlx::raw_sql("TRUNCATE coupons; TRUNCATE upload_chunks")
            .execute(&self.pool)
            .await?;
        self.settle().await
    }

    /// Memory of the service's process.
    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        let pid = self.service.id().context("the service is not running")?;
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("{path} (Linux) cannot be read"))?;
        let mib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib: Option<f64> = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            Ok::<_, anyhow::Error>(kib.with_context(|| format!("no {name} in {path}"))? / 1024.0)
        };
        Ok(Memory {
            resident: mib("VmRSS:")?,
            peak: mib("VmHWM:")?,
        })
    }

    /// Writes what is dirty to disk, so that a measurement does not pay for the one before.
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
        // The stand's own server trusts whoever reaches its socket; a checkpoint wants the superuser.
        let url = self.url.replacen("//couponbook@", "//postgres@", 1);
        let mut superuser = PgConnection::connect(&url).await?;
        sqlx::raw_sql("CHECKPOINT").execute(&mut superuser).await?;
        Ok(superuser.close().await?)
    }
}

async fn insert_users(pool: &PgPool, count: usize) -> anyhow::Result<Vec<Uuid>> {
    let users: Vec<Uuid> = (0..count).map(|_| id::new()).collect();
    sqlx::query("INSERT INTO users (id, email, name) SELECT id, id || '@example.com', 'A user' FROM unnest($1::uuid[]) AS n (id)")
        .bind(&users)
        .execute(pool)
        .await?;
    Ok(users)
}

async fn make_key(db: &Db) -> anyhow::Result<String> {
    let mut tx = db.begin().await?;
    let new = NewUser {
        email: "bench@example.com".to_owned(),
        name: "Bench".to_owned(),
        password_hash: None,
        role: UserRole::Admin,
    };
    let admin = Caller {
        id: user::create(&mut tx, &new).await?.id,
        access: Access::User(UserRole::Admin),
    };
    let new = NewApiKey {
        name: "Bench".to_owned(),
        scopes: vec![Scope::Manage, Scope::Read, Scope::Assign, Scope::Redeem],
        expires_at: None,
        miss_budget: None,
    };
    let (_, key) = api_key::create(&mut tx, &admin, &new).await?;
    db::commit(tx).await?;
    Ok(key)
}

async fn start_service(binary: &Path, url: &str, dir: &Path) -> anyhow::Result<(Child, SocketAddr)> {
    let mut service = Command::new(binary)
        .args(["up", "--listen", "127.0.0.1:0"])
        .env("COUPONBOOK_DATABASE_URL", url)
        .env("COUPONBOOK_DATA_DIR", dir.join("data"))
        .env("COUPONBOOK_RATE_LIMITS", "off")
        .env("COUPONBOOK_LOG", "warn")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{} cannot be run", binary.display()))?;
    let mut lines = BufReader::new(service.stdout.take().context("piped")?).lines();
    let ready = tokio::time::timeout(PATIENCE, async {
        while let Some(line) = lines.next_line().await? {
            if let Some((_, address)) = line.split_once(" ready on http://") {
                return anyhow::Ok(address.trim().parse::<SocketAddr>()?);
            }
        }
        bail!("the service ended before it was ready")
    });
    let address = ready.await.context("the service was not ready in time")??;
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((service, address))
}
