//! The audit trail across coupons and books.

use coupon_core::{
    Error, audit,
    coupon::{Behalf, code, locate},
};
use poem_openapi::{OpenApi, param::Query, payload::Json};
use uuid::Uuid;

use super::{Tag, coupons::EventView};
use crate::{
    Nullable, Problem,
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
        let mut connection = self.app.db().pool().acquire().await.map_err(Error::from)?;
        let mut filter = audit::Filter {
            actor: actor.0,
            book_id: book_id.0,
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
                // Nothing ever happened to what is no coupon.
                Err(problem) if problem.code() == coupon_core::Code::NotFound => {
                    return Ok(Json(Page {
                        data: Vec::new(),
                        next_cursor: Nullable(None),
                    }));
                }
                Err(problem) => return Err(problem),
            }
        }
        let page = audit::list(&mut connection, &filter, after, limit.rows()).await?;
        Ok(Json(Page::of(page, &list, |event| event.id, EventView::from)))
    }
}
