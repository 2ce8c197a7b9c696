//! The whole service, proved together.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it does not expect is to fail"
)]

mod crash;
mod hangup;
mod life;
mod matrix;
mod plans;
mod processes;
mod queue;
mod races;
mod readme;
mod schema;
mod sweeps;
mod truth;
