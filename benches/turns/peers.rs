//! nginx, HAProxy and Envoy as plain reverse proxies without a lock: one worker, as in a sidecar, connections to the backend that
//! are kept, no access log, and nothing buffered that need not be.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use super::process::command;
use super::procfs::open_files_limit;
use super::stage::Stage;
use super::subject::Kind;
use crate::Failure;

/// The environments in which the tests keep Envoy.
const ENVIRONMENT: &str = "SERIATIM_TEST_PROXIES";
const DEFAULT_ENVIRONMENT: &str = "target/test-proxies-venv/bin";

/// Debian has servers there, and not every user's path does.
const SERVERS: &str = "/usr/sbin";

/// An installed program, as a whole path; `None`: it isn't installed.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let environment = std::env::var_os(ENVIRONMENT).unwrap_or_else(|| DEFAULT_ENVIRONMENT.into());
    std::env::split_paths(&path)
        .chain([SERVERS.into(), environment.into()])
        .map(|folder| folder.join(program))
        // A child starts in another folder, so a relative path would be wrong there.
        .find_map(|program| program.is_file().then(|| program.canonicalize().ok())?)
}

/// Writes the configuration of a peer that listens at `addr`, and returns the command that starts it.
pub(crate) fn prepare(
    stage: &Stage,
    kind: Kind,
    addr: SocketAddr,
    under: &[String],
) -> Result<Command, Failure> {
    let name = kind.name();
    let program = find(name).ok_or_else(|| format!("{name} is not installed"))?;
    let folder = stage
        .directory
        .path()
        .join(format!("{name}-{}", addr.port()));
    std::fs::create_dir(&folder)?;
    let file = folder.join(name);
    let mut command = command(under, &program);
    match kind {
        Kind::Nginx => {
            std::fs::write(&file, nginx(addr, stage.backend, under.is_empty()))?;
            command.arg("-p").arg(&folder).arg("-c").arg(&file);
            command.args(["-e", "stderr"]);
        }
        Kind::Haproxy => {
            std::fs::write(&file, haproxy(addr, stage.backend))?;
            command.arg("-db").arg("-f").arg(&file);
        }
        Kind::Envoy => {
            let file = file.with_extension("yaml");
            std::fs::write(&file, envoy(addr, stage.backend))?;
            command.arg("-c").arg(&file);
            command.args(["--concurrency", "1", "--disable-hot-restart"]);
            command.args(["--log-level", "critical"]);
        }
        _ => return Err(format!("{name} is no peer").into()),
    }
    command.current_dir(&folder);
    Ok(command)
}

/// nginx: a master and one worker, or one process under a profiler.
fn nginx(addr: SocketAddr, backend: SocketAddr, with_master: bool) -> String {
    let master = if with_master { "on" } else { "off" };
    let connections = open_files_limit().min(1 << 20);
    format!(
        "daemon off; master_process {master}; worker_processes 1; pid nginx.pid; error_log stderr crit;\n\
         events {{ worker_connections {connections}; }}\n\
         http {{\n\
         access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; client_max_body_size 0;\n\
         client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;\n\
         scgi_temp_path scgi;\n\
         upstream backend {{ server {backend}; keepalive 64; keepalive_requests 1000000000; }}\n\
         server {{ listen {addr}; location / {{\n\
         proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header connection \"\";\n\
         proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 1h; }} }}\n\
         }}\n"
    )
}

/// HAProxy holds the head of a response back for 200 ms if no body comes with it, unless `http-no-delay` is set. It keeps the
/// backend's side of a stream whose client has left, unless `abortonclose` is set.
fn haproxy(addr: SocketAddr, backend: SocketAddr) -> String {
    // Each connection takes two open files.
    let connections = (open_files_limit() / 2).min(1 << 20).saturating_sub(50);
    format!(
        "global\n  nbthread 1\n  maxconn {connections}\n\
         defaults\n  mode http\n  maxconn {connections}\n  option http-no-delay\n  option abortonclose\n\
         \u{20} timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         listen chat\n  bind {addr}\n  http-reuse always\n  server backend {backend}\n"
    )
}

fn envoy(addr: SocketAddr, backend: SocketAddr) -> String {
    const TYPE: &str = "type.googleapis.com/envoy.extensions";
    let at = |addr: SocketAddr| {
        let (host, port) = (addr.ip(), addr.port());
        format!("{{ socket_address: {{ address: {host}, port_value: {port} }} }}")
    };
    let (listen, backend) = (at(addr), at(backend));
    // The limits are 1024 by default.
    let limits = ["max_connections", "max_pending_requests", "max_requests"]
        .map(|name| format!("{name}: 1000000"))
        .join(", ");
    format!(
        r#"static_resources:
  listeners:
    - name: chat
      address: {listen}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": {TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: chat
                stream_idle_timeout: 0s
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      routes: [{{ match: {{ prefix: "/" }}, route: {{ cluster: backend, timeout: 0s }} }}]
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {{ "@type": {TYPE}.filters.http.router.v3.Router }}
  clusters:
    - name: backend
      connect_timeout: 5s
      circuit_breakers: {{ thresholds: [{{ {limits} }}] }}
      load_assignment:
        cluster_name: backend
        endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {backend} }} }}] }}]
"#
    )
}
