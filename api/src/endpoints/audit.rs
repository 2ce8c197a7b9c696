//! The audit trail across coupons and books.

use coupon_core::audit;
use poem_openapi::{OpenApi, param::Query, payload::Json};
use uuid::Uuid;

use super::{Narrowed, Tag, coupons::EventView};
use crate::{
    Problem,
    app::App,
    auth::Auth,
    lists::{Limit, Page, decode_cursor},
};

/// The endpoint of the audit trail.
pub struct Audit {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Audit")]
impl Audit {
    /// What happened, newest first.
    #[oai(path = "/audit", method = "get")]
    async fn list(
        &self,
        auth: Auth,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
        actor: Query<Option<Uuid>>,
        book_id: Query<Option<Uuid>>,
        code: Query<Option<String>>,
    ) -> Result<Json<Page<EventView>>, Problem> {
        auth.require_admin()?;
        let list = format!("audit/{:?}/{:?}/{:?}", actor.0, book_id.0, code.0);
        let after: Option<Uuid> = decode_cursor(&list, cursor.0.as_deref())?;
        let mut connection = self.app.connection().await?;
        let coupon = match Narrowed::by_code(&mut connection, code.0.as_deref(), book_id.0).await? {
            Narrowed::Not => None,
            Narrowed::To(coupon) => Some(coupon),
            Narrowed::ToNothing => return Ok(Json(Page::empty())),
        };
        let filter = audit::Filter {
            actor: actor.0,
            book_id: book_id.0,
            coupon,
        };
        let page = audit::list(&mut connection, &filter, after, limit.rows()).await?;
        Ok(Json(Page::of(page, &list, |event| event.id, EventView::from)))
    }
}
