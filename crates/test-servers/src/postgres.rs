//! PostgreSQL.

use std::fs;
use std::process::Command;

use crate::process::{Kind, Server, find};

const KIND: Kind = Kind {
    package: "postgresql",
    user: Some("postgres"),
    ready: "database system is ready to accept connections",
};

/// A PostgreSQL server with one superuser, `tester`, who needs a password.
///
/// ```no_run
/// let server = test_servers::Postgres::start();
/// let url = server.database("orders");
/// assert!(url.ends_with("/orders"));
/// ```
pub struct Postgres(Server);

impl Postgres {
    /// The superuser.
    pub const USER: &str = "tester";
    /// Its password.
    pub const PASSWORD: &str = "pg-s3cret";

    /// Starts a server and waits until it answers.
    ///
    /// # Panics
    /// When a program is missing, naming the Debian package, or the server does not start.
    #[must_use]
    pub fn start() -> Self {
        let mut server = Server::new(&KIND, "postgres", |directory, port| {
            let data = directory.join("data");
            let mut arguments = vec!["-D".to_owned(), data.display().to_string()];
            let settings = [
                format!("port={port}"),
                "listen_addresses=127.0.0.1".to_owned(),
                "unix_socket_directories=".to_owned(),
                "fsync=off".to_owned(),
                "full_page_writes=off".to_owned(),
                "synchronous_commit=off".to_owned(),
                "shared_buffers=16MB".to_owned(),
                "max_connections=200".to_owned(),
                "autovacuum=off".to_owned(),
                "lc_messages=C".to_owned(),
                // In the data directory, which is removed however the server ends.
                "dynamic_shared_memory_type=mmap".to_owned(),
            ];
            for setting in settings {
                arguments.extend(["-c".to_owned(), setting]);
            }
            arguments
        });
        let password = server.directory().join("password");
        fs::write(&password, Self::PASSWORD).expect("the password file can be written");
        let mut initdb = server.command(&find("initdb", KIND.package));
        initdb
            .args(["--no-sync", "--locale=C", "--encoding=UTF8", "--username"])
            .args([Self::USER, "--auth=scram-sha-256", "--pwfile"])
            .arg(&password)
            .arg("--pgdata")
            .arg(server.directory().join("data"));
        server.run(initdb);
        server.start();
        Self(server)
    }

    /// The URL of the database `postgres`, with user and password.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Makes a database of this name and gives its URL.
    ///
    /// # Panics
    /// When it cannot be made, as when it exists.
    #[must_use]
    pub fn database(&self, name: &str) -> String {
        let mut createdb = Command::new(find("createdb", KIND.package));
        createdb
            .env("PGPASSWORD", Self::PASSWORD)
            .args(["--host", "127.0.0.1", "--port", &self.port().to_string()])
            .args(["--username", Self::USER, "--maintenance-db", "postgres"])
            .arg(name);
        self.0.run(createdb);
        self.url_of(name)
    }

    /// The port of 127.0.0.1 that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Ends it at once with all its connections, as `kill -9` does.
    pub fn kill(&self) {
        self.0.kill();
    }

    /// Stops it (SIGSTOP): connections are accepted, nothing answers.
    ///
    /// # Panics
    /// When it was killed.
    pub fn stop(&self) {
        self.0.stop();
    }

    /// Lets a stopped server go on.
    ///
    /// # Panics
    /// When it was killed.
    pub fn cont(&self) {
        self.0.cont();
    }

    /// Starts it again on its port with its data, ending it first if it runs.
    ///
    /// # Panics
    /// When it does not come back.
    pub fn restart(&self) {
        self.0.restart();
    }

    fn url_of(&self, database: &str) -> String {
        let (user, password, port) = (Self::USER, Self::PASSWORD, self.port());
        format!("postgres://{user}:{password}@127.0.0.1:{port}/{database}")
    }
}
