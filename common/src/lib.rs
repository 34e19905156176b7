//! Sally's vocabulary: what the agent and the controller both have to mean the same thing by.
//!
//! In reading order: [`name`] and [`id`] are the checked values everything else is made of,
//! [`key`] signs and verifies, [`subject`] builds and reads every subject, [`limit`] holds the
//! bounds with their reasons, [`wire`] is every byte that crosses the broker, [`trust`] is who
//! may sign what, [`nats`] is the connection and what the broker allows, [`clock`] reads the wall clock,
//! [`duration`] and [`text`] are how durations are written and how bytes of output become text,
//! [`settings`] is how both programs are configured, [`notify`] what they tell the service manager, [`fail`] is where tests make programs fail.
#![forbid(unsafe_code)]

pub mod clock;
pub mod duration;
pub mod fail;
pub mod id;
pub mod json;
pub mod key;
pub mod limit;
pub mod name;
pub mod nats;
pub mod notify;
pub mod params;
pub mod program;
pub mod secret;
pub mod selector;
pub mod settings;
pub mod subject;
pub mod text;
pub mod trust;
pub mod variable;
pub mod wire;
