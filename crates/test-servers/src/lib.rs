//! Real PostgreSQL, MariaDB and Redis for the tests.
//!
//! Each server listens on a free port of 127.0.0.1, keeps its files in a temporary directory, and
//! ends with its value, or with the test process however that ends: a guardian process notices the
//! closed pipe, ends the server and removes its files. So the tests of one binary may share a server
//! in a `static OnceLock`. Faults are asked for by name: [`Postgres::kill`], [`Postgres::stop`],
//! [`Postgres::cont`], [`Postgres::restart`], and the same on the others.
//!
//! Servers that refuse to run as root run as the system user of their Debian package.

mod mariadb;
mod postgres;
mod process;
mod redis;

pub use mariadb::MariaDb;
pub use postgres::Postgres;
pub use redis::Redis;
