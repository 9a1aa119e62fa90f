//! The servers start, answer, fail as asked and leave nothing behind.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use test_servers::{MariaDb, Postgres, Redis};

const LIMIT: Duration = Duration::from_secs(60);

fn connect(port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect(("127.0.0.1", port))
}

/// What a Redis server answers to a PING, if it does within the limit.
fn ping(port: u16, limit: Duration) -> std::io::Result<String> {
    let mut stream = connect(port)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LIMIT, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_killed_server_refuses_and_a_restarted_one_answers_on_the_same_port() {
    let server = Redis::start();
    let port = server.port();
    assert_eq!(ping(port, LIMIT).unwrap(), "+PONG\r\n");
    server.kill();
    let refused = connect(port).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    server.restart();
    assert_eq!(ping(port, LIMIT).unwrap(), "+PONG\r\n");
}

#[test]
fn a_stopped_server_accepts_and_stays_silent() {
    let server = Redis::start();
    server.stop();
    let silent = ping(server.port(), Duration::from_millis(50)).unwrap_err();
    assert!(matches!(
        silent.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut
    ));
    server.cont();
    assert_eq!(ping(server.port(), LIMIT).unwrap(), "+PONG\r\n");
}

#[test]
fn a_dropped_server_is_gone() {
    let server = Redis::start();
    let port = server.port();
    server.stop();
    drop(server);
    assert!(connect(port).is_err());
}

#[test]
fn postgres_makes_databases_and_comes_back() {
    let server = Postgres::start();
    assert!(server.database("mine").ends_with("/mine"));
    server.kill();
    assert!(connect(server.port()).is_err());
    server.restart();
    assert!(connect(server.port()).is_ok());
}

#[test]
fn mariadb_makes_databases_and_comes_back() {
    let server = MariaDb::start();
    assert!(server.database("mine").ends_with("/mine"));
    server.kill();
    assert!(connect(server.port()).is_err());
    server.restart();
    assert!(connect(server.port()).is_ok());
}

#[test]
#[ignore = "no test by itself: a_server_ends_with_its_process_even_when_that_is_killed runs and kills it"]
fn waits_to_be_killed() {
    let server = Redis::start();
    // Stopped, so that it cannot end by itself.
    server.stop();
    println!("port {}", server.port());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn a_server_ends_with_its_process_even_when_that_is_killed() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "waits_to_be_killed"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = std::io::BufReader::new(victim.stdout.take().unwrap());
    let port: u16 = loop {
        let mut line = String::new();
        let read = std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        assert!(read > 0, "the victim says its port");
        if let Some((_, port)) = line.trim().rsplit_once("port ") {
            break port.parse().unwrap();
        }
    };
    assert!(connect(port).is_ok());
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_for("the port is free again", || connect(port).is_err());
}

#[test]
fn the_files_are_removed_with_the_server() {
    let server = Redis::start();
    let process = format!("redis-server 127.0.0.1:{}", server.port());
    let directory = directory_of(&process).expect("the server runs in its directory");
    assert!(directory.exists());
    drop(server);
    assert!(!directory.exists());
}

/// The working directory of the process that was started with this command.
fn directory_of(command: &str) -> Option<std::path::PathBuf> {
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|process| {
        let said = std::fs::read(process.path().join("cmdline")).ok()?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let matches = said.contains(command);
        matches.then(|| std::fs::read_link(Path::new(&process.path()).join("cwd")).ok())?
    })
}
