//! The history of uses: list, and give one back. And what else only administrators do to a coupon.

use coupon_core::coupon::{Behalf, locate, rollback, withdraw};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    payload::Json,
};
use uuid::Uuid;

use super::{Narrowed, Tag, coupons::CouponView, origin, path_code, till::RedemptionView};
use crate::{
    Body, Problem, RequestId,
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

/// The two ways of withdrawing a coupon.
#[derive(Clone, Copy)]
enum Way {
    Revoke,
    Void,
}

impl Redemptions {
    async fn withdraw(
        &self,
        way: Way,
        auth: Auth,
        id: RequestId,
        code: &str,
        key: IdempotencyKey,
        body: Body<Withdrawal>,
    ) -> Result<Reply<CouponView>, Problem> {
        auth.require_admin()?;
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, Some(body.hash())).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let withdrawn = async {
            let code = path_code(code)?;
            let tx = once.tx();
            let coupon = locate::locate(tx, Behalf::Anybody, &code, body.book_id)
                .await?
                .coupon;
            match way {
                Way::Revoke => withdraw::revoke(tx, &coupon, &body.reason, origin(&auth, &id)).await,
                Way::Void => withdraw::void(tx, &coupon, &body.reason, origin(&auth, &id)).await,
            }
        };
        let withdrawn = withdrawn.await.map(CouponView::from);
        once.finish(withdrawn, |_| None).await
    }
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
        self.withdraw(Way::Revoke, auth, id, &code.0, key, body).await
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
        self.withdraw(Way::Void, auth, id, &code.0, key, body).await
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
        let mut connection = self.app.connection().await?;
        let coupon = match Narrowed::by_code(&mut connection, code.0.as_deref(), book_id.0).await? {
            Narrowed::Not => None,
            Narrowed::To(coupon) => Some(coupon),
            Narrowed::ToNothing => return Ok(Json(Page::empty())),
        };
        let filter = rollback::Filter {
            book_id: book_id.0,
            user_id: user_id.0,
            coupon,
        };
        let page = rollback::list(&mut connection, &filter, after, limit.rows()).await?;
        Ok(Json(Page::of(
            page,
            &list,
            |redemption| redemption.id,
            RedemptionView::from,
        )))
    }
}
