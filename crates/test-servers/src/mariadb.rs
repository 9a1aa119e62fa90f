//! MariaDB.

use std::fs;
use std::process::Command;

use crate::process::{Kind, Server, feed, find};

const KIND: Kind = Kind {
    package: "mariadb-server",
    user: Some("mysql"),
    ready: "ready for connections",
};

/// A MariaDB server with one user, `tester`, who may do everything and needs a password.
///
/// ```no_run
/// let server = test_servers::MariaDb::start();
/// let url = server.database("orders");
/// assert!(url.ends_with("/orders"));
/// ```
pub struct MariaDb(Server);

impl MariaDb {
    /// The user who may do everything.
    pub const USER: &str = "tester";
    /// Its password.
    pub const PASSWORD: &str = "maria-s3cret";

    /// Starts a server and waits until it answers.
    ///
    /// # Panics
    /// When a program is missing, naming the Debian package, or the server does not start.
    #[must_use]
    pub fn start() -> Self {
        let mut server = Server::new(&KIND, "mariadbd", |directory, port| {
            let path = |name: &str| directory.join(name).display().to_string();
            vec![
                "--no-defaults".to_owned(),
                format!("--datadir={}", path("data")),
                format!("--port={port}"),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--socket={}", path("socket")),
                format!("--pid-file={}", path("mariadb.pid")),
                format!("--init-file={}", path("users.sql")),
                "--skip-name-resolve".to_owned(),
                "--innodb-flush-log-at-trx-commit=0".to_owned(),
                "--innodb-doublewrite=0".to_owned(),
                "--innodb-buffer-pool-size=32M".to_owned(),
                "--innodb-log-file-size=8M".to_owned(),
            ]
        });
        let (user, password) = (Self::USER, Self::PASSWORD);
        let users = format!(
            "CREATE USER IF NOT EXISTS '{user}'@'%' IDENTIFIED BY '{password}';\n\
             GRANT ALL ON *.* TO '{user}'@'%' WITH GRANT OPTION;\n\
             CREATE DATABASE IF NOT EXISTS test;\n"
        );
        fs::write(server.directory().join("users.sql"), users)
            .expect("the users' file can be written");
        let data = server.directory().join("data");
        let mut install = server.command(&find("mariadb-install-db", KIND.package));
        install
            .args(["--no-defaults", "--skip-test-db", "--skip-name-resolve"])
            .arg("--auth-root-authentication-method=normal")
            .arg(format!("--datadir={}", data.display()));
        server.run(install);
        server.start();
        Self(server)
    }

    /// The URL of the database `test`, with user and password.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("test")
    }

    /// Makes a database of this name and gives its URL.
    ///
    /// # Panics
    /// When it cannot be made, as when it exists.
    #[must_use]
    pub fn database(&self, name: &str) -> String {
        let mut client = Command::new(find("mariadb", "mariadb-client"));
        client
            .env("MYSQL_PWD", Self::PASSWORD)
            .args(["--no-defaults", "--protocol=tcp", "--host=127.0.0.1"])
            .args(["--port", &self.port().to_string(), "--user", Self::USER]);
        feed(client, &format!("CREATE DATABASE `{name}`;"));
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
        format!("mysql://{user}:{password}@127.0.0.1:{port}/{database}")
    }
}
