//! Sessions: register, log in, refresh, log out.
//!
//! None of these is stored for an Idempotency-Key: the answers are credentials, and each request can be made again.

use coupon_core::{
    Code, db,
    user::{
        login::{self, LoginAttempt},
        register::{self, Registration},
        session,
    },
};
use poem::web::RemoteAddr;
use poem_openapi::{Object, OpenApi, payload::Json};

use super::{NoContent, Tag, client_address, users::UserView};
use crate::{Body, Problem, app::App, reply::Reply};

/// An account that somebody makes for themselves.
#[derive(Object)]
#[oai(rename = "Registration")]
pub struct RegistrationRequest {
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

/// E-mail address and password.
#[derive(Object)]
#[oai(rename = "Login")]
pub struct LoginRequest {
    /// The e-mail address, in any case.
    #[oai(validator(min_length = 1, max_length = 254))]
    email: String,
    /// The password.
    #[oai(validator(min_length = 1, max_length = 1024))]
    password: String,
}

/// A refresh token.
#[derive(Object)]
pub struct RefreshToken {
    /// The newest one of the session.
    #[oai(validator(min_length = 1, max_length = 200))]
    refresh_token: String,
}

/// A session: its tokens, and whose it is.
#[derive(Object)]
#[oai(rename = "Session")]
pub struct SessionView {
    /// For the header `Authorization: Bearer …`.
    access_token: String,
    /// Always `Bearer`.
    token_type: String,
    /// Seconds for which the access token is valid.
    expires_in: i64,
    /// To be exchanged once, at /v1/auth/refresh, for the next session.
    refresh_token: String,
    /// Who is logged in.
    user: UserView,
}

impl From<session::Session> for SessionView {
    fn from(session: session::Session) -> Self {
        let session::Session {
            access_token,
            token_type,
            expires_in,
            refresh_token,
            user,
        } = session;
        Self {
            access_token,
            token_type: token_type.to_owned(),
            expires_in,
            refresh_token,
            user: user.into(),
        }
    }
}

/// The endpoints of sessions.
pub struct Sessions {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::People")]
impl Sessions {
    /// Make an account for yourself, if this installation lets strangers do so (403 `registration_disabled`). The
    /// account is a user's; log in afterwards.
    #[oai(path = "/auth/register", method = "post")]
    async fn register(
        &self,
        remote: &RemoteAddr,
        body: Body<RegistrationRequest>,
    ) -> Result<Reply<UserView, 201>, Problem> {
        if !self.app.registration() {
            return Err(Problem::new(
                Code::RegistrationDisabled,
                "Registration is switched off here. Ask an administrator for an account.",
            ));
        }
        let wanted = Registration {
            email: &body.email,
            name: &body.name,
            password: &body.password,
            address: client_address(remote),
        };
        let app = &self.app;
        let user = register::register(app.db(), app.passwords(), app.budgets(), wanted).await?;
        Ok(Reply::new(&user.into()))
    }

    /// Log in. An unknown address, a wrong password and a disabled account look alike; failures are counted by account
    /// and by network address, and too many are answered 429 with Retry-After.
    #[oai(path = "/auth/login", method = "post")]
    async fn login(
        &self,
        remote: &RemoteAddr,
        body: Body<LoginRequest>,
    ) -> Result<Json<SessionView>, Problem> {
        let attempt = LoginAttempt {
            email: &body.email,
            password: &body.password,
            address: client_address(remote),
        };
        let app = &self.app;
        let keys = app.authenticator().keys();
        let session = login::login(app.db(), keys, app.passwords(), app.budgets(), attempt).await?;
        Ok(Json(session.into()))
    }

    /// Exchange a refresh token for the next session. Each is good once: a second use ends the session (401
    /// `refresh_reused`), since two parties hold the token.
    #[oai(path = "/auth/refresh", method = "post")]
    async fn refresh(&self, body: Body<RefreshToken>) -> Result<Json<SessionView>, Problem> {
        let mut tx = self.app.db().begin().await?;
        let keys = self.app.authenticator().keys();
        let refreshed = session::refresh(&mut tx, keys, &body.refresh_token).await?;
        // Also a refusal is committed: it may have ended a session.
        db::commit(tx).await?;
        Ok(Json(refreshed.into_result()?.into()))
    }

    /// Log out: ends the session of a refresh token, with its access tokens. A token that is not known, or whose
    /// session has ended, is fine.
    #[oai(path = "/auth/logout", method = "post")]
    async fn logout(&self, body: Body<RefreshToken>) -> Result<NoContent, Problem> {
        let mut tx = self.app.db().begin().await?;
        session::logout(&mut tx, &body.refresh_token).await?;
        db::commit(tx).await?;
        Ok(NoContent::Done)
    }
}
