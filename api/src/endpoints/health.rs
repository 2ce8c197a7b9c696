//! Whether the process lives, whether it should get requests, and what it measures.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use coupon_core::{Code, db, metrics::exposition::CONTENT_TYPE};
use poem_openapi::{
    ApiResponse, Object, OpenApi,
    payload::{Json, PlainText},
};

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

/// What a scraper gets.
#[derive(ApiResponse)]
pub enum Metrics {
    /// Prometheus's text format, version 0.0.4.
    #[oai(status = 200)]
    Text(PlainText<String>, #[oai(header = "Content-Type")] String),
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

    /// What the process measures, for Prometheus. Where `metrics_listen` is set, this is told there and not here.
    #[oai(path = "/metrics", method = "get")]
    async fn metrics(&self) -> Result<Metrics, Problem> {
        if !self.app.metrics_here() {
            return Err(Problem::not_found());
        }
        let text = self.app.exposition().text().await;
        Ok(Metrics::Text(PlainText(text), CONTENT_TYPE.to_owned()))
    }
}
