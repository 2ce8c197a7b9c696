//! The history of uses: list, and give one back. And what else only administrators do to a coupon.

use coupon_core::{
    Error,
    coupon::{Behalf, CouponId, code, locate, rollback, withdraw},
};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    payload::Json,
};
use uuid::Uuid;

use super::{Tag, coupons::CouponView, origin, path_code, till::RedemptionView};
use crate::{
    Body, Nullable, Problem, RequestId,
    app::App,
    auth::Auth,
    lists::{Limit, Page, decode_cursor},
    once::{self, Begun, IdempotencyKey, Once},
    reply::Reply,
};

/// Why something is withdrawn.
#[derive(Debug, Object)]
pub struct Withdrawal {
    /// For the record.
    #[oai(validator(min_length = 1, max_length = 1000))]
    reason: String,
    /// In which book, if several hold the code.
    book_id: Option<Uuid>,
}

/// Why a use is given back.
#[derive(Debug, Object)]
pub struct RollbackRequest {
    /// For the record.
    #[oai(validator(min_length = 1, max_length = 1000))]
    reason: String,
}

/// The endpoints of redemptions and withdrawals.
pub struct Redemptions {
    /// What handlers share.
    pub app: App,
}

async fn find(once: &mut Once, code: &str, book_id: Option<Uuid>) -> Result<CouponId, Error> {
    let code = path_code(code)?;
    Ok(locate::locate(once.tx(), Behalf::Anybody, &code, book_id)
        .await?
        .coupon)
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Coupons")]
impl Redemptions {
    /// Take an assigned coupon back from its holder; it returns to the draw.
    #[oai(path = "/coupons/revoke/:code", method = "post")]
    async fn revoke(
        &self,
        auth: Auth,
        id: RequestId,
        code: Path<String>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<Withdrawal>,
    ) -> Result<Reply<CouponView>, Problem> {
        auth.require_admin()?;
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, Some(body.hash())).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let revoked = async {
            let coupon = find(&mut once, &code.0, body.book_id).await?;
            withdraw::revoke(once.tx(), &coupon, &body.reason, origin(&auth, &id)).await
        };
        let revoked = revoked.await.map(CouponView::from);
        once.finish(revoked, |_| None).await
    }

    /// Take a coupon out of use for good.
    #[oai(path = "/coupons/void/:code", method = "post")]
    async fn void(
        &self,
        auth: Auth,
        id: RequestId,
        code: Path<String>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<Withdrawal>,
    ) -> Result<Reply<CouponView>, Problem> {
        auth.require_admin()?;
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, Some(body.hash())).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let voided = async {
            let coupon = find(&mut once, &code.0, body.book_id).await?;
            withdraw::void(once.tx(), &coupon, &body.reason, origin(&auth, &id)).await
        };
        let voided = voided.await.map(CouponView::from);
        once.finish(voided, |_| None).await
    }

    /// Give the use of a redemption back.
    #[oai(path = "/redemptions/:id/rollback", method = "post")]
    async fn rollback(
        &self,
        auth: Auth,
        request_id: RequestId,
        id: Path<Uuid>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<RollbackRequest>,
    ) -> Result<Reply<RedemptionView, 201>, Problem> {
        auth.require_admin()?;
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, Some(body.hash())).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let undone = rollback::rollback(once.tx(), id.0, &body.reason, origin(&auth, &request_id)).await;
        once.finish(undone.map(RedemptionView::from), |_| None).await
    }

    /// The history of uses, newest first.
    #[oai(path = "/redemptions", method = "get")]
    async fn list(
        &self,
        auth: Auth,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
        book_id: Query<Option<Uuid>>,
        user_id: Query<Option<Uuid>>,
        code: Query<Option<String>>,
    ) -> Result<Json<Page<RedemptionView>>, Problem> {
        auth.require_admin()?;
        let list = format!("redemptions/{:?}/{:?}/{:?}", book_id.0, user_id.0, code.0);
        let after: Option<Uuid> = decode_cursor(&list, cursor.0.as_deref())?;
        let mut connection = self.app.db().pool().acquire().await.map_err(Error::from)?;
        let mut filter = rollback::Filter {
            book_id: book_id.0,
            user_id: user_id.0,
            coupon: None,
        };
        if let Some(text) = &code.0 {
            let found = match code::Code::parse(text) {
                Ok(code) => locate::locate(&mut connection, Behalf::Anybody, &code, book_id.0)
                    .await
                    .map(|located| located.coupon),
                Err(_) => Err(coupon_core::Refusal::not_found().into()),
            };
            match found.map_err(Problem::from) {
                Ok(coupon) => filter.coupon = Some(coupon),
                // What is no coupon was never redeemed.
                Err(problem) if problem.code() == coupon_core::Code::NotFound => {
                    return Ok(Json(Page {
                        data: Vec::new(),
                        next_cursor: Nullable(None),
                    }));
                }
                Err(problem) => return Err(problem),
            }
        }
        let page = rollback::list(&mut connection, &filter, after, limit.rows()).await?;
        Ok(Json(Page::of(
            page,
            &list,
            |redemption| redemption.id,
            RedemptionView::from,
        )))
    }
}
