//! What jobs could not do.

use coupon_core::job::ledger;
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    payload::Json,
};
use serde_json::Value;
use uuid::Uuid;

use super::Tag;
use crate::{
    Problem,
    app::App,
    auth::Auth,
    lists::{Limit, Page, decode_cursor},
};

/// One thing that a job could not do.
#[derive(Debug, Object)]
pub struct ErrorLine {
    /// The physical line on which the record starts (imports).
    #[oai(skip_serializing_if_is_none)]
    line: Option<i64>,
    /// The column, if one is at fault.
    #[oai(skip_serializing_if_is_none)]
    column: Option<String>,
    /// The item's place in the request (batches and distributions).
    #[oai(skip_serializing_if_is_none)]
    item: Option<i64>,
    /// The user that the item is about.
    #[oai(skip_serializing_if_is_none)]
    user_id: Option<Uuid>,
    /// Stable.
    reason: String,
    /// For people.
    detail: String,
    /// The value at fault.
    #[oai(skip_serializing_if_is_none)]
    value: Option<String>,
}

impl ErrorLine {
    fn of(entry: &Value) -> Self {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).map(str::to_owned);
        Self {
            line: entry.get("line").and_then(Value::as_i64),
            column: text("column"),
            item: entry.get("item").and_then(Value::as_i64),
            user_id: text("user_id").and_then(|id| id.parse().ok()),
            reason: text("reason").unwrap_or_default(),
            detail: text("detail").unwrap_or_default(),
            value: text("value"),
        }
    }
}

/// The endpoint of what jobs could not do.
pub struct JobErrors {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Jobs")]
impl JobErrors {
    /// What a job could not do, line by line.
    #[oai(path = "/jobs/:id/errors", method = "get")]
    async fn errors(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
    ) -> Result<Json<Page<ErrorLine>>, Problem> {
        let list = format!("jobs/{}/errors", id.0);
        let after: Option<i64> = decode_cursor(&list, cursor.0.as_deref())?;
        let mut connection = self.app.connection().await?;
        let page = ledger::list_errors(&mut connection, &auth, id.0, after, limit.rows()).await?;
        Ok(Json(Page::of(
            page,
            &list,
            |line| line.seq,
            |line| ErrorLine::of(&line.entry),
        )))
    }
}
