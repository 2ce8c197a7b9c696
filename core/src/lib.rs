//! What coupons are: the domain, its rules and all SQL.
//!
//! Nothing here knows of HTTP or of the worker runtime. Functions take an open `&mut PgConnection`
//! and neither begin nor commit: transactions begin and end at the edge (a handler or a job's step).

pub mod audit;
pub mod book;
pub mod caller;
pub mod config;
pub mod coupon;
pub mod db;
pub mod distribution;
pub mod doctor;
pub mod error;
pub mod export;
pub mod generate;
pub mod group;
pub mod id;
pub mod idempotency;
pub mod import;
pub mod job;
pub mod leftovers;
pub mod metrics;
pub mod page;
pub mod pool;
pub mod proof;
pub mod rate_limit;
pub mod retention;
pub mod schedule;
pub mod stats;
pub mod telemetry;
pub mod user;

mod binary_copy;

pub use error::{Code, Error, Refusal, Result};
