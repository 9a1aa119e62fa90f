//! Redis.

use crate::process::{Kind, Server};

const KIND: Kind = Kind {
    package: "redis-server",
    user: None,
    ready: "Ready to accept connections",
};

/// A Redis server that keeps nothing on disk.
///
/// ```no_run
/// let server = test_servers::Redis::start();
/// assert!(server.url().starts_with("redis://127.0.0.1:"));
/// ```
pub struct Redis {
    server: Server,
    password: Option<String>,
}

impl Redis {
    /// Starts a server that asks for no password and waits until it answers.
    ///
    /// # Panics
    /// When the program is missing, naming the Debian package, or the server does not start.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// Starts a server that asks for this password and waits until it answers.
    ///
    /// # Panics
    /// When the program is missing, naming the Debian package, or the server does not start.
    #[must_use]
    pub fn with_password(password: &str) -> Self {
        Self::start_with(Some(password.to_owned()))
    }

    fn start_with(password: Option<String>) -> Self {
        let required = password.clone();
        let mut server = Server::new(&KIND, "redis-server", move |_, port| {
            let port = port.to_string();
            let mut arguments = vec!["--port", &port, "--bind", "127.0.0.1"];
            arguments.extend(["--save", "", "--appendonly", "no"]);
            if let Some(password) = &required {
                arguments.extend(["--requirepass", password]);
            }
            arguments.into_iter().map(str::to_owned).collect()
        });
        server.start();
        Self { server, password }
    }

    /// The URL of its database 0, with the password if it asks for one.
    #[must_use]
    pub fn url(&self) -> String {
        let port = self.port();
        match &self.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{port}/0"),
            None => format!("redis://127.0.0.1:{port}/0"),
        }
    }

    /// The port of 127.0.0.1 that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Ends it at once with all its connections, as `kill -9` does.
    pub fn kill(&self) {
        self.server.kill();
    }

    /// Stops it (SIGSTOP): connections are accepted, nothing answers.
    ///
    /// # Panics
    /// When it was killed.
    pub fn stop(&self) {
        self.server.stop();
    }

    /// Lets a stopped server go on.
    ///
    /// # Panics
    /// When it was killed.
    pub fn cont(&self) {
        self.server.cont();
    }

    /// Starts it again on its port, empty, ending it first if it runs.
    ///
    /// # Panics
    /// When it does not come back.
    pub fn restart(&self) {
        self.server.restart();
    }
}
