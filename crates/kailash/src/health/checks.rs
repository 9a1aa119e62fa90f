//! Checks that come with the library.
//!
//! Those of servers keep one connection from run to run and drop it at the first error. Their timeout
//! covers name look-up, connecting, TLS, the request and its answer together, and says which of them
//! took the time.

mod custom;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "system")]
mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "http", feature = "redis", feature = "sql"))]
mod server;
#[cfg(feature = "sql")]
mod sql;

pub use custom::Custom;
#[cfg(feature = "http")]
pub use http::{Http, HttpConfig};
#[cfg(feature = "system")]
pub use memory::{Memory, MemoryConfig};
#[cfg(feature = "redis")]
pub use redis::{Redis, RedisConfig};
#[cfg(feature = "sql")]
pub use sql::{Sql, SqlConfig};
