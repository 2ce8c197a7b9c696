//! The plan of a distribution: what a dry run answers.

use coupon_core::distribution::{Reason, plan};
use poem::{IntoResponse, Response};
use poem_openapi::{
    ApiResponse, Object,
    payload::Json,
    registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry},
    types::Type,
};
use uuid::Uuid;

use super::{hex, job_reply::JobReply, job_view::JobView};
use crate::reply::Reply;

/// Members who are left out for one reason.
#[derive(Debug, Object)]
pub struct Excluded {
    /// disabled, limit_reached, or ineligible: has as many as wanted already.
    pub reason: String,
    /// How many.
    pub count: i64,
}

/// Somebody who would get coupons.
#[derive(Debug, Object)]
pub struct Recipient {
    user_id: Uuid,
    count: i32,
}

/// What a distribution would do; nothing was written.
#[derive(Debug, Object)]
#[oai(rename = "DistributionPlan")]
pub struct PlanView {
    /// People who would get at least one coupon.
    recipients: i64,
    /// Members who would be left out, by reason.
    excluded: Vec<Excluded>,
    /// Coupons needed.
    codes_needed: i64,
    /// Coupons that can be drawn.
    codes_free: i64,
    /// Coupons that are missing, or that nobody may take.
    shortfall: i64,
    /// The first recipients in their order.
    sample: Vec<Recipient>,
    /// SHA-256 of the seed that the sample follows from; without a seed of your own another run has another one.
    seed_commitment: String,
}

impl From<plan::Plan> for PlanView {
    fn from(plan: plan::Plan) -> Self {
        let excluded = |(reason, count): (Reason, i64)| Excluded {
            reason: reason.as_str().to_owned(),
            count,
        };
        Self {
            recipients: plan.recipients,
            excluded: plan.excluded.into_iter().map(excluded).collect(),
            codes_needed: plan.codes_needed,
            codes_free: plan.codes_free,
            shortfall: plan.shortfall,
            sample: plan
                .sample
                .into_iter()
                .map(|(user_id, count)| Recipient { user_id, count })
                .collect(),
            seed_commitment: hex(&plan.seed_commitment),
        }
    }
}

/// The answer to a distribution: its job, or for a dry run its plan.
pub enum Distributed {
    /// The plan.
    Plan(Reply<PlanView>),
    /// The job.
    Job(Box<JobReply>),
}

impl IntoResponse for Distributed {
    fn into_response(self) -> Response {
        match self {
            Self::Plan(reply) => reply.into_response(),
            Self::Job(reply) => reply.into_response(),
        }
    }
}

impl ApiResponse for Distributed {
    fn meta() -> MetaResponses {
        let answer = |status, description, schema| MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content: vec![MetaMediaType {
                content_type: <Json<PlanView> as poem_openapi::payload::Payload>::CONTENT_TYPE,
                schema,
            }],
            headers: Vec::new(),
        };
        let either = MetaSchemaRef::Inline(Box::new(MetaSchema {
            any_of: vec![PlanView::schema_ref(), JobView::schema_ref()],
            ..MetaSchema::ANY
        }));
        MetaResponses {
            responses: vec![
                answer(
                    200,
                    "The plan of a dry run; or the job, when it was waited for and has ended.",
                    either,
                ),
                answer(
                    202,
                    "The job, which is not at its end; poll Location.",
                    JobView::schema_ref(),
                ),
            ],
        }
    }

    fn register(registry: &mut Registry) {
        PlanView::register(registry);
        JobView::register(registry);
    }
}
