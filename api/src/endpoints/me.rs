//! The own account: read, change, change the password.

use coupon_core::{
    Refusal,
    caller::Caller,
    db,
    user::{
        self, UserChange,
        login::{self, PasswordChange},
    },
};
use poem::{Request, http::header::AUTHORIZATION, web::RemoteAddr};
use poem_openapi::{Object, OpenApi, payload::Json};
use uuid::Uuid;

use super::{Tag, client_address, keyed_hash, users::UserView};
use crate::{
    Body, Problem,
    app::App,
    auth::Auth,
    once::{self, Begun, IdempotencyKey, Once},
    reply::Reply,
};

/// A change of the own account: what is absent stays.
#[derive(Debug, Object)]
pub struct MeChange {
    /// For people.
    #[oai(validator(min_length = 1, max_length = 200))]
    name: Option<String>,
    /// The e-mail address, with which to log in.
    #[oai(validator(min_length = 1, max_length = 254))]
    email: Option<String>,
}

/// A change of the own password.
#[derive(Object)]
#[oai(rename = "PasswordChange")]
pub struct PasswordChangeRequest {
    /// The password until now.
    #[oai(validator(min_length = 1, max_length = 1024))]
    old_password: String,
    /// The password from now on: 10 characters or more, none that is easily guessed.
    #[oai(validator(max_length = 1024))]
    new_password: String,
}

/// The endpoints of the own account.
pub struct Me {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::People")]
impl Me {
    /// Read your own account. API keys have none (403).
    #[oai(path = "/me", method = "get")]
    async fn read(&self, auth: Auth) -> Result<Json<UserView>, Problem> {
        let user_id = require_person(&auth)?;
        let mut connection = self.app.connection().await?;
        let user = user::find(&mut connection, user_id)
            .await?
            .ok_or_else(Problem::not_found)?;
        Ok(Json(user.into()))
    }

    /// Change your own name or e-mail address.
    #[oai(path = "/me", method = "patch")]
    async fn change(&self, auth: Auth, body: Body<MeChange>) -> Result<Json<UserView>, Problem> {
        let user_id = require_person(&auth)?;
        let change = UserChange {
            email: body.value.email,
            name: body.value.name,
            ..UserChange::default()
        };
        let mut tx = self.app.db().begin().await?;
        let user = user::update(&mut tx, user_id, &change).await?;
        db::commit(tx).await?;
        Ok(Json(user.into()))
    }

    /// Change your own password. Every session but this one ends; a wrong old password counts as a failed log-in.
    #[oai(path = "/me/password", method = "post")]
    async fn change_password(
        &self,
        auth: Auth,
        request: &Request,
        remote: &RemoteAddr,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<PasswordChangeRequest>,
    ) -> Result<Reply<UserView>, Problem> {
        let user_id = require_person(&auth)?;
        let app = &self.app;
        let hash = keyed_hash(app, body.hash());
        // Looked up before: once it is done, the old password of the same request is wrong. And given up meanwhile:
        // nobody holds a connection while waiting to hash.
        match Once::begin(app, app.db(), &auth, key.clone(), Some(&hash)).await? {
            Begun::Fresh(once) => once.give_up().await?,
            Begun::Before(answer) => return once::again(answer),
        }
        let change = PasswordChange {
            user_id,
            session_id: session_of(app, request),
            old: &body.old_password,
            new: &body.new_password,
            address: client_address(remote),
        };
        let checked = login::check_change(app.db(), app.passwords(), app.budgets(), change).await?;
        let mut once = match Once::begin(app, app.db(), &auth, key, Some(&hash)).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let changed = async {
            login::apply_change(once.tx(), checked).await?;
            let user = user::find(once.tx(), user_id).await?;
            Ok(user.ok_or_else(Refusal::not_found)?)
        };
        let changed = changed.await.map(UserView::from);
        once.finish(changed, |_| None).await
    }
}

/// The own account is a person's.
fn require_person(caller: &Caller) -> Result<Uuid, Refusal> {
    caller.user_id().ok_or_else(Refusal::forbidden)
}

/// The session of the bearer token that this request was authenticated with.
fn session_of(app: &App, request: &Request) -> Option<Uuid> {
    let (_, token) = request.header(AUTHORIZATION)?.split_once(' ')?;
    app.authenticator().keys().session_of(token.trim())
}
