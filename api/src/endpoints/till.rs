//! The till: lock, unlock and redeem, at once and in one transaction each, because a shopper waits.

use coupon_core::{
    Error, Refusal,
    caller::{Caller, Scope},
    coupon::{
        Behalf, CouponId,
        locate::{self, InBook, Located},
        lock::{self, Lock},
        redeem::{self, Redemption},
    },
};
use poem_openapi::{Enum, Object, OpenApi, param::Path};
use uuid::Uuid;

use super::{Lookup, Metadata, Tag, check_metadata, coupons::CouponView, metadata, origin, path_code};
use crate::{
    Body, Nullable, Problem, RequestId,
    app::App,
    auth::Auth,
    once::{self, Begun, IdempotencyKey, Single},
    reply::Reply,
    time::Time,
};

/// A lock to be taken or renewed.
#[derive(Debug, Object)]
pub struct LockRequest {
    /// In which book, if several hold the code.
    book_id: Option<Uuid>,
    /// The token of the live lock, to renew it.
    #[oai(validator(min_length = 1, max_length = 200))]
    lock_token: Option<String>,
    /// On whose behalf (administrators and keys with `redeem`).
    user_id: Option<Uuid>,
}

/// A lock to be given back.
#[derive(Debug, Object)]
pub struct UnlockRequest {
    /// Its token; administrators may leave it out.
    #[oai(validator(min_length = 1, max_length = 200))]
    lock_token: Option<String>,
    /// In which book, if several hold the code.
    book_id: Option<Uuid>,
}

/// A use to be spent.
#[derive(Debug, Object)]
pub struct RedeemRequest {
    /// The lock's token, where the book wants a lock.
    #[oai(validator(min_length = 1, max_length = 200))]
    lock_token: Option<String>,
    /// In which book, if several hold the code.
    book_id: Option<Uuid>,
    /// On whose behalf (administrators and keys with `redeem`).
    user_id: Option<Uuid>,
    /// Your own fields, such as a receipt number.
    metadata: Option<Metadata>,
}

/// A lock.
#[derive(Debug, Object)]
#[oai(rename = "Lock")]
pub struct LockView {
    code: String,
    book_id: Uuid,
    /// Proves the ownership; shown here only.
    lock_token: String,
    locked_until: Time,
    /// The service's clock now, for countdowns.
    server_time: Time,
    renewals_left: i32,
}

impl From<Lock> for LockView {
    fn from(lock: Lock) -> Self {
        let Lock {
            code,
            book_id,
            lock_token,
            locked_until,
            server_time,
            renewals_left,
        } = lock;
        Self {
            code,
            book_id,
            lock_token,
            locked_until: locked_until.into(),
            server_time: server_time.into(),
            renewals_left,
        }
    }
}

/// A use, or a use given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum RedemptionKind {
    /// A use.
    Redemption,
    /// A use given back.
    Rollback,
}

/// One line of the history of uses.
#[derive(Debug, Object)]
#[oai(rename = "Redemption")]
pub struct RedemptionView {
    /// UUIDv7.
    pub id: Uuid,
    kind: RedemptionKind,
    reverses_id: Nullable<Uuid>,
    book_id: Uuid,
    code: String,
    user_id: Uuid,
    redeemed_at: Time,
    /// The user or API key that did it.
    redeemed_by: Uuid,
    metadata: Metadata,
    rolled_back_at: Nullable<Time>,
}

impl From<Redemption> for RedemptionView {
    fn from(redemption: Redemption) -> Self {
        Self {
            id: redemption.id,
            kind: match redemption.kind.as_str() {
                "rollback" => RedemptionKind::Rollback,
                _ => RedemptionKind::Redemption,
            },
            reverses_id: redemption.reverses_id.into(),
            book_id: redemption.book_id,
            code: redemption.code,
            user_id: redemption.user_id,
            redeemed_at: redemption.redeemed_at.into(),
            redeemed_by: redemption.redeemed_by,
            metadata: metadata(redemption.metadata),
            rolled_back_at: redemption.rolled_back_at.into(),
        }
    }
}

/// On whose behalf somebody acts: administrators and keys with `redeem` for the holder they name or whoever holds the
/// coupon, a person for itself.
fn behalf(caller: &Caller, user_id: Option<Uuid>) -> Result<Behalf, Problem> {
    if caller.may(Scope::Redeem) {
        return Ok(user_id.map_or(Behalf::Anybody, Behalf::Holder));
    }
    match (caller.user_id(), user_id) {
        (Some(own), None) => Ok(Behalf::Holder(own)),
        (Some(own), Some(user_id)) if user_id == own => Ok(Behalf::Holder(own)),
        _ => Err(Refusal::forbidden().into()),
    }
}

/// The endpoints of the till.
pub struct Till {
    /// What handlers share.
    pub app: App,
}

impl Till {
    /// Which coupon is meant. One of a named book by a look that all tills share, not on the request's own connection,
    /// which it need not hold yet, or has done nothing to coupons on.
    async fn find(
        &self,
        once: &mut Single,
        behalf: Behalf,
        code: &str,
        book_id: Option<Uuid>,
    ) -> Result<Located, Error> {
        let code = path_code(code)?;
        let Some(book_id) = book_id else {
            return locate::locate(once.connection().await?, behalf, &code, None).await;
        };
        let holder = behalf.holder();
        let asked = InBook {
            book_id,
            code,
            holder,
        };
        let found = self.app.coupons().ask(asked).await?;
        found.ok_or_else(|| Refusal::not_found().into())
    }

    /// The same, and whether its holder's account is disabled: asked at the same time if the holder is known before.
    async fn find_with_holder(
        &self,
        once: &mut Single,
        behalf: Behalf,
        code: &str,
        book_id: Option<Uuid>,
    ) -> Result<(CouponId, bool), Error> {
        let disabled = self.app.disabled();
        let find = self.find(once, behalf, code, book_id);
        match behalf.holder() {
            Some(holder) => {
                let (located, disabled) = tokio::join!(find, disabled.ask(holder));
                Ok((located?.coupon, disabled?))
            }
            None => {
                let located = find.await?;
                match located.holder {
                    Some(holder) => Ok((located.coupon, disabled.ask(holder).await?)),
                    None => Ok((located.coupon, false)),
                }
            }
        }
    }
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Coupons")]
impl Till {
    /// Lock a coupon before its redemption, or renew its lock with the token.
    #[oai(path = "/coupons/lock/:code", method = "post")]
    async fn lock(
        &self,
        auth: Auth,
        id: RequestId,
        code: Path<String>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<LockRequest>,
    ) -> Result<Reply<LockView>, Problem> {
        let behalf = behalf(&auth, body.user_id)?;
        let lookup = Lookup::begin(&self.app, &auth, &code.0, body.book_id).await?;
        let mut once = match Single::begin(&self.app, self.app.till(), &auth, key, Some(body.hash())).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let locked = async {
            let found = self.find_with_holder(&mut once, behalf, &code.0, body.book_id);
            let (coupon, disabled) = found.await?;
            let token = body.lock_token.as_deref();
            lock::lock(
                once.connection().await?,
                &coupon,
                behalf,
                token,
                disabled,
                origin(&auth, &id),
            )
            .await
        };
        let locked = locked.await.map(LockView::from);
        lookup.end(once.finish(locked).await).await
    }

    /// Give a lock back.
    #[oai(path = "/coupons/unlock/:code", method = "post")]
    async fn unlock(
        &self,
        auth: Auth,
        id: RequestId,
        code: Path<String>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<UnlockRequest>,
    ) -> Result<Reply<CouponView>, Problem> {
        let behalf = behalf(&auth, None)?;
        let lookup = Lookup::begin(&self.app, &auth, &code.0, body.book_id).await?;
        let mut once = match Single::begin(&self.app, self.app.till(), &auth, key, Some(body.hash())).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let unlocked = async {
            let coupon = self.find(&mut once, behalf, &code.0, body.book_id).await?.coupon;
            let token = body.lock_token.as_deref();
            lock::unlock(
                once.connection().await?,
                &coupon,
                behalf,
                token,
                auth.is_admin(),
                origin(&auth, &id),
            )
            .await
        };
        let unlocked = unlocked.await.map(CouponView::from);
        lookup.end(once.finish(unlocked).await).await
    }

    /// Redeem a coupon: spend one use.
    #[oai(path = "/coupons/redeem/:code", method = "post")]
    async fn redeem(
        &self,
        auth: Auth,
        id: RequestId,
        code: Path<String>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<RedeemRequest>,
    ) -> Result<Reply<RedemptionView>, Problem> {
        let behalf = behalf(&auth, body.user_id)?;
        let hash = *body.hash();
        let RedeemRequest {
            lock_token,
            book_id,
            metadata,
            ..
        } = body.value;
        let fields = check_metadata(metadata)?;
        let lookup = Lookup::begin(&self.app, &auth, &code.0, book_id).await?;
        let mut once = match Single::begin(&self.app, self.app.till(), &auth, key, Some(&hash)).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let redeemed = async {
            let (coupon, disabled) = self.find_with_holder(&mut once, behalf, &code.0, book_id).await?;
            redeem::redeem(
                once.connection().await?,
                &coupon,
                behalf,
                lock_token.as_deref(),
                &fields,
                disabled,
                origin(&auth, &id),
            )
            .await
        };
        let redeemed = redeemed.await.map(RedemptionView::from);
        lookup.end(once.finish(redeemed).await).await
    }
}
