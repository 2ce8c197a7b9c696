//! Pools: make, list, read, change, delete; who is in them, one by one or from a file.

use coupon_core::{
    db,
    import::{
        Settings, dialect,
        upload::{self, Target},
    },
    pool::{
        self, Change, Pool,
        import::accept,
        members::{self, Changed, Member},
    },
};
use poem_openapi::{
    Object, OpenApi,
    param::{Header, Path, Query},
    payload::Json,
};
use uuid::Uuid;

use super::{
    NoContent, Tag,
    job_reply::{self, JobReply},
    origin,
};
use crate::{
    Body, Problem, RequestId,
    app::App,
    auth::Auth,
    csv::{CsvBody, receive},
    etag,
    lists::{Limit, Page, decode_cursor},
    once::{self, Begun, IdempotencyKey, Once},
    reply::Reply,
    time::Time,
};

/// A pool to be made.
#[derive(Debug, Object)]
pub struct NewPool {
    /// For people.
    #[oai(validator(min_length = 1, max_length = 200))]
    name: String,
    /// For people.
    #[oai(validator(max_length = 10000))]
    description: Option<String>,
}

/// A change of a pool: what is absent stays.
#[derive(Debug, Object)]
pub struct PoolChange {
    /// For people.
    #[oai(validator(min_length = 1, max_length = 200))]
    name: Option<String>,
    /// For people.
    #[oai(validator(max_length = 10000))]
    description: Option<String>,
}

/// Users to be added to a pool, or removed from it.
#[derive(Debug, Object)]
pub struct PoolUsers {
    /// 1 to 1,000 users.
    #[oai(validator(min_items = 1, max_items = 1000))]
    user_ids: Vec<Uuid>,
}

/// A pool.
#[derive(Debug, Object)]
#[oai(rename = "Pool")]
pub struct PoolView {
    /// UUIDv7.
    pub id: Uuid,
    name: String,
    description: String,
    /// How many members it has.
    members: i64,
    created_at: Time,
}

impl From<Pool> for PoolView {
    fn from(pool: Pool) -> Self {
        Self {
            id: pool.id,
            name: pool.name,
            description: pool.description,
            members: pool.members,
            created_at: pool.created_at.into(),
        }
    }
}

/// A member of a pool.
#[derive(Debug, Object)]
#[oai(rename = "PoolMember")]
pub struct MemberView {
    user_id: Uuid,
    email: String,
    name: String,
    /// Distributions leave out accounts that are disabled.
    disabled: bool,
    added_at: Time,
}

impl From<Member> for MemberView {
    fn from(member: Member) -> Self {
        Self {
            user_id: member.user_id,
            email: member.email,
            name: member.name,
            disabled: member.disabled,
            added_at: member.added_at.into(),
        }
    }
}

/// What became of a change of members.
#[derive(Debug, Object)]
#[oai(rename = "PoolMembersChanged")]
pub struct ChangedView {
    /// How many were not members before.
    added: i64,
    /// How many are members no longer.
    removed: i64,
    /// How many members the pool has now.
    members: i64,
}

impl From<Changed> for ChangedView {
    fn from(changed: Changed) -> Self {
        Self {
            added: changed.added,
            removed: changed.removed,
            members: changed.members,
        }
    }
}

/// The endpoints of pools.
pub struct Pools {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Pools")]
impl Pools {
    /// Make a pool: a named set of people to whom coupons are distributed.
    #[oai(path = "/pools", method = "post")]
    async fn create(
        &self,
        auth: Auth,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<NewPool>,
    ) -> Result<Reply<PoolView, 201>, Problem> {
        auth.require_admin()?;
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, Some(body.hash())).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return Ok(once::again(answer)?.tagged(etag::tag(1))),
        };
        let description = body.description.as_deref().unwrap_or_default();
        let made = pool::insert(once.tx(), &body.name, description, auth.actor()).await;
        let reply = once
            .finish(made.map(PoolView::from), |pool| {
                Some(format!("/v1/pools/{}", pool.id))
            })
            .await?;
        Ok(reply.tagged(etag::tag(1)))
    }

    /// List pools, newest first.
    #[oai(path = "/pools", method = "get")]
    async fn list(
        &self,
        auth: Auth,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
    ) -> Result<Json<Page<PoolView>>, Problem> {
        auth.require_admin()?;
        let after: Option<Uuid> = decode_cursor("pools", cursor.0.as_deref())?;
        let mut connection = self.app.connection().await?;
        let page = pool::list(&mut connection, after, limit.rows()).await?;
        Ok(Json(Page::of(page, "pools", |pool| pool.id, PoolView::from)))
    }

    /// Read a pool; its ETag goes into If-Match of a change.
    #[oai(path = "/pools/:id", method = "get")]
    async fn read(&self, auth: Auth, id: Path<Uuid>) -> Result<Reply<PoolView>, Problem> {
        auth.require_admin()?;
        let mut connection = self.app.connection().await?;
        let pool = pool::find(&mut connection, id.0).await?;
        let tag = etag::tag(pool.version);
        Ok(Reply::new(&PoolView::from(pool)).tagged(tag))
    }

    /// Change a pool's name or description. Members come and go without changing its ETag.
    #[oai(path = "/pools/:id", method = "patch")]
    async fn change(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        #[oai(name = "If-Match")] if_match: Header<Option<String>>,
        body: Body<PoolChange>,
    ) -> Result<Reply<PoolView>, Problem> {
        auth.require_admin()?;
        let PoolChange { name, description } = body.value;
        let mut tx = self.app.db().begin().await?;
        let before = pool::find(&mut tx, id.0).await?;
        etag::check(if_match.0.as_deref(), before.version)?;
        let change = Change { name, description };
        let changed = pool::update(&mut tx, id.0, before.version, &change).await?;
        db::commit(tx).await?;
        let tag = etag::tag(changed.version);
        Ok(Reply::new(&PoolView::from(changed)).tagged(tag))
    }

    /// Delete a pool. Distributions that were made to it keep their own record of its members.
    #[oai(path = "/pools/:id", method = "delete")]
    async fn delete(&self, auth: Auth, id: Path<Uuid>) -> Result<NoContent, Problem> {
        auth.require_admin()?;
        let mut tx = self.app.db().begin().await?;
        pool::delete(&mut tx, id.0).await?;
        db::commit(tx).await?;
        Ok(NoContent::Done)
    }

    /// List the members of a pool.
    #[oai(path = "/pools/:id/members", method = "get")]
    async fn members(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
    ) -> Result<Json<Page<MemberView>>, Problem> {
        auth.require_admin()?;
        let list = format!("pools/{}/members", id.0);
        let after: Option<Uuid> = decode_cursor(&list, cursor.0.as_deref())?;
        let mut connection = self.app.connection().await?;
        let page = members::list(&mut connection, id.0, after, limit.rows()).await?;
        Ok(Json(Page::of(
            page,
            &list,
            |member| member.user_id,
            MemberView::from,
        )))
    }

    /// Add users to a pool, all or none; who is a member already stays one.
    #[oai(path = "/pools/:id/members", method = "post")]
    async fn add(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<PoolUsers>,
    ) -> Result<Reply<ChangedView>, Problem> {
        auth.require_admin()?;
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, Some(body.hash())).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let added = members::add(once.tx(), id.0, &body.user_ids).await;
        once.finish(added.map(ChangedView::from), |_| None).await
    }

    /// Remove users from a pool; who is no member is nothing.
    #[oai(path = "/pools/:id/members", method = "delete")]
    async fn remove(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        body: Body<PoolUsers>,
    ) -> Result<Json<ChangedView>, Problem> {
        auth.require_admin()?;
        let mut tx = self.app.db().begin().await?;
        let removed = members::remove(&mut tx, id.0, &body.user_ids).await?;
        db::commit(tx).await?;
        Ok(Json(removed.into()))
    }

    /// Add the users of a CSV file of e-mail addresses to a pool: a job. Lines whose address is nobody's are listed in
    /// its errors.
    #[oai(path = "/pools/:id/members/import", method = "post")]
    #[expect(clippy::too_many_arguments, reason = "each is a declared parameter")]
    async fn import(
        &self,
        auth: Auth,
        request_id: RequestId,
        id: Path<Uuid>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
        delimiter: Query<Option<String>>,
        column: Query<Option<String>>,
        has_header: Query<Option<bool>>,
        encoding: Query<Option<String>>,
        body: CsvBody,
    ) -> Result<JobReply, Problem> {
        auth.require_admin()?;
        let app = &self.app;
        app.depth().admit()?;
        let settings = Settings {
            delimiter: delimiter.0.as_deref().map(dialect::parse_delimiter).transpose()?,
            column: column.0,
            has_header: has_header.0,
            encoding: encoding.0,
            ..Settings::default()
        };
        let mut connection = app.connection().await?;
        pool::find(&mut connection, id.0).await?;
        drop(connection);
        let target = Target::Pool(id.0);
        let upload = receive(app, &auth, target, settings.encoding.as_deref(), body).await?;
        let (hash, prefer) = (Some(&upload.sha256), prefer.0.as_deref());
        let accepted = job_reply::accepted(app, &auth, key, hash, prefer, async |tx| {
            accept(tx, id.0, upload.id, &settings, origin(&auth, &request_id)).await
        })
        .await;
        if !matches!(&accepted, Ok(reply) if !reply.is_replayed()) {
            // Nobody will read it; if this fails the sweep takes it.
            let _ = upload::discard(app.db(), upload.id).await;
        }
        accepted
    }
}
