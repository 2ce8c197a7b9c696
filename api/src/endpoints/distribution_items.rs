//! The people of a distribution: what each was to get, and what came of it.

use bytes::Bytes;
use coupon_core::distribution::{self, Item, items_csv::ItemsCsv};
use futures_util::stream;
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
    payload::Json,
};
use uuid::Uuid;

use super::Tag;
use crate::{
    Nullable, Problem,
    app::App,
    auth::Auth,
    csv::CsvReport,
    lists::{Limit, Page, decode_cursor},
};

/// Where one person of a distribution stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum ItemState {
    /// It is not yet their turn.
    Planned,
    /// Got the whole share.
    Given,
    /// Got less, or nothing.
    Short,
    /// The plan leaves them out.
    LeftOut,
    /// Mode random: no coupon was drawn for them.
    NotDrawn,
}

impl ItemState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Given => "given",
            Self::Short => "short",
            Self::LeftOut => "left_out",
            Self::NotDrawn => "not_drawn",
        }
    }
}

/// One person of a distribution.
#[derive(Debug, Object)]
#[oai(rename = "DistributionItem")]
pub struct ItemView {
    user_id: Uuid,
    /// Coupons of the plan.
    wanted: i32,
    /// Coupons that the run assigned.
    assigned: i32,
    /// Those of them that undoing took back.
    undone: i32,
    /// planned, given, short, left_out or not_drawn.
    state: String,
    /// Why short or left out: disabled, limit_reached, ineligible, shortage.
    reason: Nullable<String>,
}

impl From<Item> for ItemView {
    fn from(item: Item) -> Self {
        Self {
            user_id: item.user_id,
            wanted: item.wanted,
            assigned: item.assigned,
            undone: item.undone,
            state: item.state,
            reason: item.reason.into(),
        }
    }
}

/// The endpoints of a distribution's people.
pub struct DistributionItems {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Pools")]
impl DistributionItems {
    /// List the people of a distribution in the order in which they are served: what each was to get, and what came of
    /// it.
    #[oai(path = "/distributions/:id/items", method = "get")]
    async fn items(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
        state: Query<Option<ItemState>>,
    ) -> Result<Json<Page<ItemView>>, Problem> {
        auth.require_admin()?;
        let state = state.0.map(ItemState::as_str);
        let list = format!("distributions/{}/items/{state:?}", id.0);
        let after: Option<(i64, Uuid)> = decode_cursor(&list, cursor.0.as_deref())?;
        let mut connection = self.app.connection().await?;
        let page = distribution::list_items(&mut connection, id.0, state, after, limit.rows()).await?;
        Ok(Json(Page::of(
            page,
            &list,
            |item| (item.place, item.user_id),
            ItemView::from,
        )))
    }

    /// The people of a distribution as CSV, with their e-mail addresses: `?state=left_out` who was left out and why,
    /// `?state=short` who came away with less.
    #[oai(path = "/distributions/:id/items.csv", method = "get")]
    async fn items_csv(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        state: Query<Option<ItemState>>,
    ) -> Result<CsvReport, Problem> {
        auth.require_admin()?;
        let mut connection = self.app.connection().await?;
        let items = ItemsCsv::begin(&mut connection, id.0, state.0.map(ItemState::as_str)).await?;
        drop(connection);
        let app = self.app.clone();
        let pages = stream::try_unfold(items, move |mut items| {
            let app = app.clone();
            async move {
                // A connection per page: a slow reader holds none.
                let mut connection = app.connection().await.map_err(std::io::Error::other)?;
                let page = items.next(&mut connection).await.map_err(std::io::Error::other)?;
                Ok(page.map(|page| (Bytes::from(page), items)))
            }
        });
        Ok(CsvReport::new(format!("distribution-{}.csv", id.0), pages))
    }
}
