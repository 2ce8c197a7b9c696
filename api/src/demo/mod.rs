//! A tiny API that only tests see: every manner of the service on a handful of operations.

mod requests;
mod sockets;

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use coupon_core::{Code, Refusal, error::StoreError};
use poem::{Endpoint, Response, Route, http::StatusCode};
use poem_openapi::{
    Enum, Object, OpenApi, OpenApiService,
    param::{Header, Path, Query},
    payload::Json,
};
use serde_json::Value;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    Body, Document, Nullable, Problem, RequestId, etag,
    lists::{Limit, Page, decode_cursor},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
enum Status {
    Active,
    Draft,
}

#[derive(Debug, Object)]
struct NewBook {
    #[oai(validator(min_length = 1, max_length = 10))]
    name: String,
    #[oai(validator(minimum(value = "1"), maximum(value = "100")))]
    count: Option<i32>,
    status: Option<Status>,
    owner: Option<Uuid>,
    starts_at: Option<DateTime<Utc>>,
    #[oai(validator(max_items = 3))]
    tags: Option<Vec<String>>,
    inner: Option<Inner>,
    exact: Option<bool>,
    #[oai(default)]
    metadata: HashMap<String, Value>,
}

#[derive(Debug, Object)]
struct Inner {
    #[oai(rename = "a/b~c")]
    label: i64,
}

#[derive(Debug, Object)]
struct Unlock {
    lock_token: Option<String>,
}

#[derive(Debug, Object)]
struct Echo {
    name: String,
    owner: Nullable<Uuid>,
    status: Nullable<Status>,
    metadata: HashMap<String, Value>,
    hash: String,
    request_id: String,
}

struct Books {
    gate: Arc<Gate>,
}

/// Lets a test know that a handler runs, and the handler that it may go on.
#[derive(Default)]
struct Gate {
    entered: Notify,
    open: Notify,
}

#[OpenApi(prefix_path = "/v1")]
impl Books {
    /// Make a book.
    #[oai(path = "/books", method = "post")]
    async fn create(&self, id: RequestId, body: Body<NewBook>) -> Result<Json<Echo>, Problem> {
        let hash = body.hash().iter().map(|byte| format!("{byte:02x}")).collect();
        let NewBook {
            name,
            owner,
            metadata,
            status,
            ..
        } = body.value;
        let (owner, status, request_id) = (owner.into(), status.into(), id.to_string());
        Ok(Json(Echo {
            name,
            owner,
            status,
            metadata,
            hash,
            request_id,
        }))
    }

    /// List numbers.
    #[oai(path = "/books", method = "get")]
    async fn list(
        &self,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
        exact: Query<Option<bool>>,
        status: Query<Option<Status>>,
    ) -> Result<Json<Page<u32>>, Problem> {
        let _ = (exact.0, status.0);
        let after: u32 = decode_cursor("numbers", cursor.0.as_deref())?.unwrap_or_default();
        let rows = (after + 1..=120).take(limit.rows() as usize + 1).collect();
        let page = coupon_core::page::Page::cut(rows, limit.rows());
        Ok(Json(Page::of(page, "numbers", |row| *row, |row| row)))
    }

    #[oai(path = "/books/:id", method = "get")]
    async fn get(&self, id: Path<Uuid>) -> Result<Json<Echo>, Problem> {
        let _ = id.0;
        Err(Refusal::not_found().into())
    }

    #[oai(path = "/coupons/unlock/:code", method = "post")]
    async fn unlock(&self, code: Path<String>, body: Body<Unlock>) -> Result<Json<String>, Problem> {
        match body.value.lock_token {
            Some(_) => Err(Problem::new(Code::CouponLocked, "Somebody else has it.")),
            None => Ok(Json(code.0.len().to_string())),
        }
    }

    #[oai(path = "/fault", method = "get")]
    async fn fault(&self) -> Result<Json<String>, Problem> {
        let secret = sqlx::Error::ColumnNotFound("secret_column".to_owned());
        Err(coupon_core::Error::Store(StoreError::Fault(secret)).into())
    }

    #[oai(path = "/panic", method = "post")]
    async fn panic(&self) -> Result<Json<String>, Problem> {
        panic!("planted")
    }

    #[oai(path = "/refusal", method = "post")]
    async fn refusal(&self) -> Result<Json<String>, Problem> {
        Err(Refusal::forbidden().into())
    }

    #[oai(path = "/gate", method = "get")]
    async fn gate(&self) -> Result<Json<String>, Problem> {
        self.gate.entered.notify_one();
        self.gate.open.notified().await;
        Ok(Json("through".to_owned()))
    }

    #[oai(path = "/stream", method = "get")]
    async fn endless(&self) -> poem_openapi::payload::Binary<poem::Body> {
        let chunk = || Ok::<_, std::io::Error>(vec![b'x'; 64 * 1024]);
        let endless = futures_util::stream::repeat_with(chunk);
        poem_openapi::payload::Binary(poem::Body::from_bytes_stream(endless))
    }
}

/// A second file that adds a method to a path of the first.
struct Changes;

#[OpenApi(prefix_path = "/v1")]
impl Changes {
    #[oai(path = "/books/:id", method = "patch")]
    async fn patch(
        &self,
        id: Path<Uuid>,
        #[oai(name = "If-Match")] if_match: Header<Option<String>>,
        #[oai(name = "X-Times", validator(maximum(value = "3")))] times: Header<Option<i32>>,
        body: Body<Unlock>,
    ) -> Result<Json<String>, Problem> {
        let _ = (id.0, times.0, body.value);
        etag::check(if_match.0.as_deref(), 7)?;
        Ok(Json("changed".to_owned()))
    }
}

fn document() -> Arc<Document> {
    let service = OpenApiService::new((Books { gate: Arc::default() }, Changes), "demo", "0");
    Arc::new(Document::new(&service))
}

fn app(gate: &Arc<Gate>) -> impl Endpoint<Output = Response> + 'static {
    let service = OpenApiService::new((Books { gate: gate.clone() }, Changes), "demo", "0");
    let document = Arc::new(Document::new(&service));
    let bare = poem::endpoint::make_sync(|_| StatusCode::SERVICE_UNAVAILABLE);
    crate::stack(
        Route::new().nest("/", service).at("/readyz", poem::get(bare)),
        document,
    )
}
