//! The whole service, proved together.

mod crash;
mod hangup;
mod life;
mod processes;
mod queue;
mod truth;
