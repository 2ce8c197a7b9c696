//! Whether the process lives, and whether it should get requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use coupon_core::{Code, db};
use poem_openapi::{Object, OpenApi, payload::Json};

use super::Tag;
use crate::{Problem, app::App};

/// A database that does not answer by then does not count as there.
const PATIENCE: Duration = Duration::from_secs(2);

/// The process is alive.
#[derive(Debug, Object)]
pub struct Alive {
    /// Always `ok`.
    status: String,
}

/// The endpoints of health.
pub struct Health {
    /// What handlers share.
    pub app: App,
    /// Turns true when the process has been told to end.
    pub draining: Arc<AtomicBool>,
}

#[OpenApi(tag = "Tag::Health")]
impl Health {
    /// The process is alive.
    #[oai(path = "/livez", method = "get")]
    async fn live(&self) -> Result<Json<Alive>, Problem> {
        Ok(Json(Alive {
            status: "ok".to_owned(),
        }))
    }

    /// The process can serve: its database answers and has the schema, and it has not been told to end.
    #[oai(path = "/readyz", method = "get")]
    async fn ready(&self) -> Result<Json<Alive>, Problem> {
        let not_ready = |detail: &'static str| Problem::new(Code::Unavailable, detail);
        if self.draining.load(Ordering::Acquire) {
            return Err(not_ready("The process is ending."));
        }
        match tokio::time::timeout(PATIENCE, db::pending_migrations(self.app.db())).await {
            Ok(Ok(0)) => Ok(Json(Alive {
                status: "ok".to_owned(),
            })),
            Ok(Ok(_)) => Err(not_ready(
                "The database lacks migrations: run `couponbook migrate`.",
            )),
            Ok(Err(_)) | Err(_) => Err(not_ready("The database does not answer.")),
        }
    }
}
