//! One server process: found, started, hurt and ended.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// Slow machines under load: an unready server is a failure of the machine, not of a test.
const READY_WITHIN: Duration = Duration::from_secs(120);
const FREE_PORTS_TRIED: usize = 20;

/// Waits for the end of its standard input, which is the end of the test process or of the server's
/// value, then ends the server with all its children and removes its files.
const GUARDIAN: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
if [ -e "$1/server.pid" ]; then
    server=$(cat "$1/server.pid")
    children=$(grep -ls "^PPid:[[:space:]]*$server\$" /proc/[0-9]*/status | cut -d/ -f3)
    kill -KILL $server $children 2>/dev/null
fi
if [ -e "$1/data/postmaster.pid" ]; then
    # A killed PostgreSQL leaves a segment of shared memory, of which the system has a few thousand.
    ipcrm -m "$(sed -n '7s/.* //p' "$1/data/postmaster.pid")" 2>/dev/null
fi
rm -rf "$1"
"#;

/// How to run one kind of server.
pub(crate) struct Kind {
    /// The Debian package, for the message when a program is missing.
    pub(crate) package: &'static str,
    /// The system user when the tests run as root.
    pub(crate) user: Option<&'static str>,
    /// What the server's log says once it answers on its port.
    pub(crate) ready: &'static str,
}

/// The server's arguments for its directory and port.
type Arguments = dyn Fn(&Path, u16) -> Vec<String> + Send + Sync;

/// A directory of its own, a port, and the process that serves it.
pub(crate) struct Server {
    kind: &'static Kind,
    directory: PathBuf,
    port: u16,
    arguments: Box<Arguments>,
    program: PathBuf,
    guardian: Mutex<Option<Child>>,
    running: Mutex<Option<Child>>,
}

impl Server {
    /// A directory for a server of this kind, owned by the user it runs as, ended by its guardian.
    pub(crate) fn new(
        kind: &'static Kind,
        program: &str,
        arguments: impl Fn(&Path, u16) -> Vec<String> + Send + Sync + 'static,
    ) -> Self {
        let program = find(program, kind.package);
        let directory = tempfile::Builder::new()
            .prefix("test-server-")
            .tempdir()
            .expect("a temporary directory can be made")
            .keep();
        if let Some(user) = kind.user.filter(|_| is_root()) {
            let done = Command::new("chown").arg(user).arg(&directory).status();
            let done = done.is_ok_and(|status| status.success());
            assert!(done, "no user {user}: install {}", kind.package);
        }
        let guardian = Command::new("sh")
            .args(["-c", GUARDIAN, "guardian"])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("sh can be started");
        Self {
            kind,
            directory,
            port: 0,
            arguments: Box::new(arguments),
            program,
            guardian: Mutex::new(Some(guardian)),
            running: Mutex::new(None),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A command that runs as the server's user, its output at the end of the server's log.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = match self.kind.user.filter(|_| is_root()) {
            Some(user) => {
                let mut command = Command::new(find("setpriv", "util-linux"));
                command.args(["--reuid", user, "--regid", user, "--init-groups", "--"]);
                command.arg(program);
                command
            }
            None => Command::new(program),
        };
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.expect("the log can be opened");
        let errors = log.try_clone().expect("the log can be opened twice");
        command
            .current_dir(&self.directory)
            // As it starts, MariaDB removes the temporary tables that it finds where its own would be,
            // those of other servers too.
            .env("TMPDIR", &self.directory)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0);
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, mut command: Command) {
        let status = command.status();
        let done = status.as_ref().is_ok_and(|status| status.success());
        assert!(done, "{command:?}: {status:?}\n{}", self.log_tail());
    }

    /// Starts the server on a free port.
    pub(crate) fn start(&mut self) {
        for _ in 0..FREE_PORTS_TRIED {
            self.port = free_port();
            // Another process may have taken the port in between.
            if self.spawn() {
                return;
            }
        }
        panic!("{:?} does not start\n{}", self.program, self.log_tail());
    }

    /// Ends the server as `kill -9` does, its children too.
    pub(crate) fn kill(&self) {
        let Some(mut child) = lock(&self.running).take() else {
            return;
        };
        signal("KILL", &tree(child.id()));
        child.wait().expect("a killed child ends");
        fs::remove_file(self.directory.join("server.pid")).expect("the pid file is there");
    }

    /// Stops the server as a debugger does: connections are accepted, nothing answers.
    pub(crate) fn stop(&self) {
        let server = self.id();
        // The server first, so that it starts no child that would go on answering.
        signal("STOP", &[server]);
        signal("STOP", &tree(server));
    }

    /// Lets a stopped server go on.
    pub(crate) fn cont(&self) {
        signal("CONT", &tree(self.id()));
    }

    /// Starts the server again on its port, ending it first if it runs, and waits until it answers.
    pub(crate) fn restart(&self) {
        self.kill();
        let begun = Instant::now();
        while !self.spawn() {
            let late = begun.elapsed() > READY_WITHIN;
            assert!(
                !late,
                "{:?} does not restart\n{}",
                self.program,
                self.log_tail()
            );
        }
    }

    fn id(&self) -> u32 {
        let running = lock(&self.running);
        running.as_ref().expect("the server is running").id()
    }

    /// Starts the server and waits until its log says that it is ready; false if it ends before.
    fn spawn(&self) -> bool {
        let from = fs::metadata(self.log()).map_or(0, |log| log.len());
        let mut command = self.command(&self.program);
        command.args((self.arguments)(&self.directory, self.port));
        let child = command.spawn();
        let mut child =
            child.unwrap_or_else(|error| panic!("{:?} does not start: {error}", self.program));
        fs::write(self.directory.join("server.pid"), child.id().to_string())
            .expect("the pid file can be written");
        let begun = Instant::now();
        loop {
            if self.log_since(from).contains(self.kind.ready) {
                *lock(&self.running) = Some(child);
                return true;
            }
            if child.try_wait().expect("a child can be asked").is_some() {
                return false;
            }
            if begun.elapsed() > READY_WITHIN {
                signal("KILL", &tree(child.id()));
                panic!("{:?} is not ready\n{}", self.program, self.log_tail());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.join("server.log")
    }

    fn log_since(&self, from: u64) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(log.len());
        String::from_utf8_lossy(&log[from..]).into_owned()
    }

    fn log_tail(&self) -> String {
        let log = self.log_since(0);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut guardian) = lock(&self.guardian).take() {
            drop(guardian.stdin.take());
            let _ = guardian.wait();
        }
        if let Some(mut child) = lock(&self.running).take() {
            let _ = child.wait();
        }
    }
}

/// A program from PATH or from where Debian keeps servers.
pub(crate) fn find(program: &str, package: &str) -> PathBuf {
    let mut places: Vec<PathBuf> = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect())
        .unwrap_or_default();
    places.extend(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        let mut versions: Vec<_> = versions.flatten().map(|entry| entry.path()).collect();
        versions.sort();
        places.extend(versions.into_iter().rev().map(|path| path.join("bin")));
    }
    let found = places.into_iter().map(|place| place.join(program));
    found
        .into_iter()
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{program} is missing: install the Debian package {package}"))
}

/// Feeds a program its input and expects success.
pub(crate) fn feed(mut command: Command, input: &str) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("the input is a pipe");
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("a child ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        written.is_ok() && output.status.success(),
        "{command:?}: {errors}"
    );
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0)
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    listener.local_addr().expect("a listener has one").port()
}

/// The process and its children.
fn tree(root: u32) -> Vec<u32> {
    let mut tree = vec![root];
    let Ok(processes) = fs::read_dir("/proc") else {
        return tree;
    };
    let parent = format!("PPid:\t{root}\n");
    for process in processes.flatten() {
        let Some(id) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let status = fs::read_to_string(process.path().join("status"));
        if status.is_ok_and(|status| status.contains(&parent)) {
            tree.push(id);
        }
    }
    tree
}

fn signal(name: &str, processes: &[u32]) {
    let processes = processes.iter().map(u32::to_string);
    // A child may end by itself in between, which is no failure.
    let _ = Command::new("kill")
        .args(["-s", name, "--"])
        .args(processes)
        .stderr(Stdio::null())
        .status();
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}
