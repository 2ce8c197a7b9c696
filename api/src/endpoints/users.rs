//! Accounts, for administrators: make, list, read, change, take out of use.

use coupon_core::{
    db,
    user::{self, NewUser, User, UserChange, login},
};
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
    payload::Json,
};
use uuid::Uuid;

use super::{NoContent, Tag, keyed_hash};
use crate::{
    Body, Problem,
    app::App,
    auth::Auth,
    lists::{Limit, Page, decode_cursor},
    once::{self, Begun, IdempotencyKey, Once},
    reply::Reply,
    time::Time,
};

/// What an account may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum Role {
    /// Everything.
    Admin,
    /// See and use its own coupons.
    User,
}

impl From<Role> for user::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Admin => Self::Admin,
            Role::User => Self::User,
        }
    }
}

impl From<user::Role> for Role {
    fn from(role: user::Role) -> Self {
        match role {
            user::Role::Admin => Self::Admin,
            user::Role::User => Self::User,
        }
    }
}

/// An account.
#[derive(Debug, Object)]
#[oai(rename = "User")]
pub struct UserView {
    /// UUIDv7.
    pub id: Uuid,
    /// The e-mail address; no other account has it, in any case.
    email: String,
    /// For people.
    name: String,
    /// What it may do.
    role: Role,
    /// Whether it may neither log in nor be given coupons.
    disabled: bool,
    /// When it was made.
    created_at: Time,
}

impl From<User> for UserView {
    fn from(user: User) -> Self {
        let User {
            id,
            email,
            name,
            role,
            disabled,
            created_at,
        } = user;
        Self {
            id,
            email,
            name,
            role: role.into(),
            disabled,
            created_at: created_at.into(),
        }
    }
}

/// An account to be made.
#[derive(Object)]
#[oai(rename = "NewUser")]
pub struct NewUserRequest {
    /// The e-mail address.
    #[oai(validator(min_length = 1, max_length = 254))]
    email: String,
    /// For people.
    #[oai(validator(min_length = 1, max_length = 200))]
    name: String,
    /// 10 characters or more, none that is easily guessed; without one the account holds coupons but does not log in.
    #[oai(validator(max_length = 1024))]
    password: Option<String>,
    /// What it may do; `user` if absent.
    role: Option<Role>,
}

/// A change of an account: what is absent stays.
#[derive(Object)]
#[oai(rename = "UserChange")]
pub struct UserChangeRequest {
    /// For people.
    #[oai(validator(min_length = 1, max_length = 200))]
    name: Option<String>,
    /// The e-mail address.
    #[oai(validator(min_length = 1, max_length = 254))]
    email: Option<String>,
    /// What it may do.
    role: Option<Role>,
    /// Disabled accounts can neither log in nor be given coupons.
    disabled: Option<bool>,
    /// The password from now on: 10 characters or more, none that is easily guessed.
    #[oai(validator(max_length = 1024))]
    password: Option<String>,
}

/// The endpoints of accounts.
pub struct Users {
    /// What handlers share.
    pub app: App,
}

impl Users {
    async fn find(&self, id: Uuid) -> Result<User, Problem> {
        let mut connection = self.app.connection().await?;
        user::find(&mut connection, id)
            .await?
            .ok_or_else(Problem::not_found)
    }
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::People")]
impl Users {
    /// List accounts, newest first; with `email` only the one that has this address, in any case. Accounts taken out of
    /// use are among them.
    #[oai(path = "/users", method = "get")]
    async fn list(
        &self,
        auth: Auth,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
        email: Query<Option<String>>,
    ) -> Result<Json<Page<UserView>>, Problem> {
        auth.require_admin()?;
        let list = format!("users/{:?}", email.0);
        let after: Option<Uuid> = decode_cursor(&list, cursor.0.as_deref())?;
        let mut connection = self.app.connection().await?;
        let page = user::list(&mut connection, email.0.as_deref(), after, limit.rows()).await?;
        Ok(Json(Page::of(page, &list, |user| user.id, UserView::from)))
    }

    /// Make an account.
    #[oai(path = "/users", method = "post")]
    async fn create(
        &self,
        auth: Auth,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<NewUserRequest>,
    ) -> Result<Reply<UserView, 201>, Problem> {
        auth.require_admin()?;
        let app = &self.app;
        let hash = keyed_hash(app, body.hash());
        let NewUserRequest {
            email,
            name,
            password,
            role,
        } = body.value;
        let mut new = NewUser {
            email,
            name,
            password_hash: None,
            role: role.unwrap_or(Role::User).into(),
        };
        new.check()?;
        if let Some(password) = password {
            let hashed = app.passwords().hash_new(&password, &new.email, &new.name).await?;
            new.password_hash = Some(hashed);
        }
        let mut once = match Once::begin(app, app.db(), &auth, key, Some(&hash)).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let made = user::create(once.tx(), &new).await.map(UserView::from);
        once.finish(made, |user| Some(format!("/v1/users/{}", user.id)))
            .await
    }

    /// Read an account.
    #[oai(path = "/users/:id", method = "get")]
    async fn read(&self, auth: Auth, id: Path<Uuid>) -> Result<Json<UserView>, Problem> {
        auth.require_admin()?;
        Ok(Json(self.find(id.0).await?.into()))
    }

    /// Change an account. Disabling it ends its sessions, and so does a password. The last administrator who is not
    /// disabled can be neither demoted nor disabled (409 `last_admin`).
    #[oai(path = "/users/:id", method = "patch")]
    async fn change(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        body: Body<UserChangeRequest>,
    ) -> Result<Json<UserView>, Problem> {
        auth.require_admin()?;
        let app = &self.app;
        let UserChangeRequest {
            name,
            email,
            role,
            disabled,
            password,
        } = body.value;
        let change = UserChange {
            email,
            name,
            role: role.map(Into::into),
            disabled,
        };
        change.check()?;
        let hash = match password {
            None => None,
            Some(password) => {
                let before = self.find(id.0).await?;
                let email = change.email.as_ref().unwrap_or(&before.email);
                let name = change.name.as_ref().unwrap_or(&before.name);
                Some(app.passwords().hash_new(&password, email, name).await?)
            }
        };
        let mut tx = app.db().begin().await?;
        let user = user::update(&mut tx, id.0, &change).await?;
        if let Some(hash) = hash {
            login::set_password(&mut tx, id.0, &hash).await?;
        }
        db::commit(tx).await?;
        Ok(Json(user.into()))
    }

    /// Take an account out of use for good: it is disabled and anonymised, its sessions end, its history stays. Doing
    /// it again changes nothing. Neither your own account (409 `cannot_delete_self`) nor the last administrator's (409
    /// `last_admin`). API keys that it made go on working: they are the organisation's; delete them by themselves.
    #[oai(path = "/users/:id", method = "delete")]
    async fn delete(&self, auth: Auth, id: Path<Uuid>) -> Result<NoContent, Problem> {
        auth.require_admin()?;
        let mut tx = self.app.db().begin().await?;
        user::disable_and_anonymise(&mut tx, auth.id, id.0).await?;
        db::commit(tx).await?;
        Ok(NoContent::Done)
    }
}
