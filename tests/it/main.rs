//! The whole service, proved together.

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
