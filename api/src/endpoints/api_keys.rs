//! API keys, for administrators: make, list, withdraw.

use coupon_core::{
    caller, db,
    user::api_key::{self, ApiKey, NewApiKey},
};
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
    payload::Json,
};
use uuid::Uuid;

use super::{NoContent, Tag, check_time};
use crate::{
    Body, Nullable, Problem,
    app::App,
    auth::Auth,
    lists::{Limit, Page, decode_cursor},
    once::{self, Begun, IdempotencyKey, Once},
    reply::Reply,
    time::Time,
};

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum Scope {
    /// Read books, coupons and jobs.
    Read,
    /// Assign coupons for anybody; see its own jobs.
    Assign,
    /// Lock, unlock and redeem for the holder; look up a code.
    Redeem,
    /// What an administrator may do.
    Manage,
}

impl From<Scope> for caller::Scope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Read => Self::Read,
            Scope::Assign => Self::Assign,
            Scope::Redeem => Self::Redeem,
            Scope::Manage => Self::Manage,
        }
    }
}

impl From<caller::Scope> for Scope {
    fn from(scope: caller::Scope) -> Self {
        match scope {
            caller::Scope::Read => Self::Read,
            caller::Scope::Assign => Self::Assign,
            caller::Scope::Redeem => Self::Redeem,
            caller::Scope::Manage => Self::Manage,
        }
    }
}

/// A key to be made.
#[derive(Debug, Object)]
#[oai(rename = "NewApiKey")]
pub struct NewApiKeyRequest {
    /// For people.
    #[oai(validator(min_length = 1, max_length = 200))]
    name: String,
    /// What it may do.
    #[oai(validator(min_items = 1, max_items = 4))]
    scopes: Vec<Scope>,
    /// When it stops working by itself; never if absent.
    expires_at: Option<Time>,
    /// Code look-ups per hour that may miss; 20 if absent.
    #[oai(validator(minimum(value = "0"), maximum(value = "2147483647")))]
    miss_budget: Option<i32>,
}

/// An API key, without its secret.
#[derive(Debug, Object)]
#[oai(rename = "ApiKey")]
pub struct ApiKeyView {
    /// UUIDv7; the actor of what the key does.
    pub id: Uuid,
    /// For people.
    name: String,
    /// The secret's first characters, to tell keys apart.
    prefix: String,
    /// What it may do.
    scopes: Vec<Scope>,
    /// Code look-ups per hour that may miss; null for the default.
    miss_budget: Nullable<i32>,
    /// The administrator who made it; for a key made with a key, who made that one.
    created_by: Uuid,
    /// When it was made.
    created_at: Time,
    /// When it was last used, to the minute.
    last_used_at: Nullable<Time>,
    /// When it stops working by itself.
    expires_at: Nullable<Time>,
    /// When it was withdrawn.
    revoked_at: Nullable<Time>,
}

impl From<ApiKey> for ApiKeyView {
    fn from(key: ApiKey) -> Self {
        let ApiKey {
            id,
            name,
            prefix,
            scopes,
            miss_budget,
            created_by,
            created_at,
            last_used_at,
            expires_at,
            revoked_at,
        } = key;
        Self {
            id,
            name,
            prefix,
            scopes: scopes.into_iter().map(Into::into).collect(),
            miss_budget: miss_budget.into(),
            created_by,
            created_at: created_at.into(),
            last_used_at: last_used_at.into(),
            expires_at: expires_at.into(),
            revoked_at: revoked_at.into(),
        }
    }
}

/// A key just made, with its secret.
#[derive(Object)]
#[oai(rename = "ApiKeyWithSecret")]
pub struct MadeApiKey {
    #[oai(flatten)]
    about: ApiKeyView,
    /// For the header `X-Api-Key`; shown here only.
    key: String,
}

/// The endpoints of API keys.
pub struct ApiKeys {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::People")]
impl ApiKeys {
    /// List API keys, newest first, also those that are withdrawn or have expired.
    #[oai(path = "/api-keys", method = "get")]
    async fn list(
        &self,
        auth: Auth,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
    ) -> Result<Json<Page<ApiKeyView>>, Problem> {
        auth.require_admin()?;
        let list = "api-keys";
        let after: Option<Uuid> = decode_cursor(list, cursor.0.as_deref())?;
        let mut connection = self.app.connection().await?;
        let page = api_key::list(&mut connection, after, limit.rows()).await?;
        Ok(Json(Page::of(page, list, |key| key.id, ApiKeyView::from)))
    }

    /// Make an API key. Its secret is in this answer and nowhere else. Keys are the organisation's, not their maker's:
    /// one goes on working when the account that made it is disabled, until it expires or is deleted. A key with
    /// `manage` may make keys too; they count as made by whoever made that one, and outlive it.
    #[oai(path = "/api-keys", method = "post")]
    async fn create(
        &self,
        auth: Auth,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<NewApiKeyRequest>,
    ) -> Result<Reply<MadeApiKey, 201>, Problem> {
        auth.require_admin()?;
        let hash = *body.hash();
        let NewApiKeyRequest {
            name,
            scopes,
            expires_at,
            miss_budget,
        } = body.value;
        let new = NewApiKey {
            name,
            scopes: scopes.into_iter().map(Into::into).collect(),
            expires_at: check_time("/expires_at", expires_at)?,
            miss_budget,
        };
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, Some(&hash)).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let made = api_key::create(once.tx(), &auth, &new).await;
        let made = made.map(|(about, key)| MadeApiKey {
            about: about.into(),
            key,
        });
        once.finish(made, |_| None).await
    }

    /// Withdraw an API key for good; again is fine. Requests that change something are refused at once, reads within
    /// five seconds.
    #[oai(path = "/api-keys/:id", method = "delete")]
    async fn delete(&self, auth: Auth, id: Path<Uuid>) -> Result<NoContent, Problem> {
        auth.require_admin()?;
        let mut tx = self.app.db().begin().await?;
        api_key::revoke(&mut tx, id.0).await?;
        db::commit(tx).await?;
        Ok(NoContent::Done)
    }
}
