//! The proof of a distribution's draws, for `couponbook verify-draw`.

use bytes::Bytes;
use coupon_core::proof;
use poem::{IntoResponse, Response};
use poem_openapi::{
    ApiResponse, OpenApi,
    param::Path,
    registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry},
};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::Tag;
use crate::{Problem, app::App, auth::Auth};

/// A proof, a piece at a time.
pub struct ProofDocument(poem::Body);

impl IntoResponse for ProofDocument {
    fn into_response(self) -> Response {
        Response::builder().content_type("application/json").body(self.0)
    }
}

impl ApiResponse for ProofDocument {
    fn meta() -> MetaResponses {
        let content = MetaMediaType {
            content_type: "application/json",
            schema: MetaSchemaRef::Inline(Box::new(MetaSchema::new("object"))),
        };
        MetaResponses {
            responses: vec![MetaResponse {
                description: "The proof, for `couponbook verify-draw`; its members are told in docs/draws.md.",
                status: Some(200),
                status_range: None,
                content: vec![content],
                headers: Vec::new(),
            }],
        }
    }

    fn register(_registry: &mut Registry) {}
}

/// The endpoint of proofs.
pub struct DistributionProof {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Pools")]
impl DistributionProof {
    /// All that is needed to do the draws of the book and the order of this distribution again, with both seeds; once
    /// the book is archived, which is for good. `couponbook verify-draw` checks it offline.
    #[oai(path = "/distributions/:id/proof", method = "get")]
    async fn proof(&self, auth: Auth, id: Path<Uuid>) -> Result<ProofDocument, Problem> {
        auth.require_admin()?;
        let mut tx = self.app.db().begin().await?;
        let allowed = proof::write::begin(&mut tx, id.0).await?;
        let (pieces, received) = mpsc::channel(2);
        tokio::spawn(async move {
            if let Err(error) = proof::write::write(&mut tx, &allowed, &pieces).await {
                tracing::warn!(%error, "a proof was not written to its end");
                let _ = pieces.send(Err(error)).await; // the answer breaks off
            }
        });
        let stream = futures_util::stream::unfold(received, |mut received| async move {
            let piece = received.recv().await?;
            Some((piece.map(Bytes::from).map_err(std::io::Error::other), received))
        });
        Ok(ProofDocument(poem::Body::from_bytes_stream(stream)))
    }
}
