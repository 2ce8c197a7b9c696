//! Setting up: the first administrator, by the one-time token that is printed while there is none.

use coupon_core::{
    caller::{Access, Caller},
    user::{self, NewUser, Role, setup},
};
use poem::web::RemoteAddr;
use poem_openapi::{Object, OpenApi, payload::Json};
use uuid::Uuid;

use super::{Tag, client_address, keyed_hash, users::UserView};
use crate::{
    Body, Problem,
    app::App,
    once::{self, Begun, IdempotencyKey, Once},
    reply::Reply,
};

/// Whether setting up is needed.
#[derive(Debug, Object)]
pub struct SetupState {
    /// Whether there is no administrator yet.
    needed: bool,
}

/// The first administrator.
#[derive(Object)]
pub struct FirstAdmin {
    /// The one-time token that is printed while there is no administrator.
    #[oai(validator(min_length = 1, max_length = 200))]
    token: String,
    /// The e-mail address, with which to log in.
    #[oai(validator(min_length = 1, max_length = 254))]
    email: String,
    /// The password: 10 characters or more, none that is easily guessed.
    #[oai(validator(max_length = 1024))]
    password: String,
    /// For people.
    #[oai(validator(min_length = 1, max_length = 200))]
    name: String,
}

/// The endpoints of setting up.
pub struct Setup {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::People")]
impl Setup {
    /// Whether there is no administrator yet, so that one is to be made with the one-time token.
    #[oai(path = "/setup", method = "get")]
    async fn read(&self) -> Result<Json<SetupState>, Problem> {
        let mut connection = self.app.connection().await?;
        let needed = !user::has_admin(&mut connection).await?;
        Ok(Json(SetupState { needed }))
    }

    /// Make the first administrator with the one-time token; of any number of requests at once, one does.
    /// A wrong token is refused (403) and counted like a failed log-in; with an administrator there is nothing to set
    /// up (409 `already_set_up`).
    #[oai(path = "/setup", method = "post")]
    async fn create(
        &self,
        remote: &RemoteAddr,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<FirstAdmin>,
    ) -> Result<Reply<UserView, 201>, Problem> {
        let app = &self.app;
        let keys = app.authenticator().keys();
        let address = client_address(remote);
        setup::require_token(app.db(), keys, app.budgets(), &body.token, address).await?;
        let hash = keyed_hash(app, body.hash());
        let FirstAdmin {
            email,
            password,
            name,
            ..
        } = body.value;
        let mut new = NewUser {
            email,
            name,
            password_hash: None,
            role: Role::Admin,
        };
        new.check()?;
        let hashed = app.passwords().hash_new(&password, &new.email, &new.name).await?;
        new.password_hash = Some(hashed);
        let mut once = match Once::begin(app, app.db(), &token_holder(), key, Some(&hash)).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let made = async {
            let user = user::ensure_first_admin(once.tx(), &new).await?;
            user.ok_or_else(setup::already_set_up)
        };
        let made = made.await.map(UserView::from);
        once.finish(made, |user| Some(format!("/v1/users/{}", user.id)))
            .await
    }
}

/// Whoever has the token is one caller, under whose name answers are stored; no account has this id.
fn token_holder() -> Caller {
    Caller {
        id: Uuid::nil(),
        access: Access::User(Role::User),
    }
}
