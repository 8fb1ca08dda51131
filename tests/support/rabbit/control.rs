//! What a test does to a running node.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::super::until;
use super::{COOKIE, Rabbit};

const TIMEOUT: Duration = Duration::from_secs(60);

impl Rabbit {
    /// Creates a virtual host for `guest` and returns its URL.
    pub async fn create_vhost(&self) -> String {
        let name = format!("test-{}", uuid::Uuid::new_v4().simple());
        let vhost = binary(&name);
        self.eval(&format!(
            "ok = rabbit_vhost:add({vhost}, <<\"tests\">>), \
             ok = rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, {vhost}, \
                  <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"tests\">>)"
        ))
        .await;
        format!("amqp://guest:guest@127.0.0.1:{}/{name}", self.port())
    }

    /// Adds a user with permissions in one virtual host (its name or an URL that ends with it) and
    /// returns the user's URL.
    pub async fn add_user(
        &self,
        name: &str,
        password: &str,
        vhost: &str,
        [configure, write, read]: [&str; 3],
    ) -> String {
        let (user, secret) = (binary(name), binary(password));
        let (configure, write, read) = (binary(configure), binary(write), binary(read));
        let host = binary(&vhost_name(vhost));
        self.eval(&format!(
            "ok = rabbit_auth_backend_internal:add_user({user}, {secret}, <<\"tests\">>), \
             ok = rabbit_auth_backend_internal:set_permissions({user}, {host}, \
                  {configure}, {write}, {read}, <<\"tests\">>)"
        ))
        .await;
        let path = vhost_name(vhost).replace('/', "%2f");
        format!("amqp://{name}:{password}@127.0.0.1:{}/{path}", self.port())
    }

    /// What the user may see of the node: `monitoring`.
    pub async fn set_tag(&self, user: &str, tag: &str) {
        let user = binary(user);
        self.eval(&format!(
            "ok = rabbit_auth_backend_internal:set_tags({user}, [{tag}], <<\"tests\">>)"
        ))
        .await;
    }

    /// Gives a user these permissions in a virtual host, in place of those before.
    pub async fn set_permissions(&self, user: &str, vhost: &str, [configure, write, read]: [&str; 3]) {
        let (user, host) = (binary(user), binary(&vhost_name(vhost)));
        let (configure, write, read) = (binary(configure), binary(write), binary(read));
        self.eval(&format!(
            "ok = rabbit_auth_backend_internal:set_permissions({user}, {host}, {configure}, {write}, {read}, <<\"tests\">>)"
        ))
        .await;
    }

    /// Takes all permissions in a virtual host, and with them the right to open it.
    pub async fn clear_permissions(&self, user: &str, vhost: &str) {
        let (user, host) = (binary(user), binary(&vhost_name(vhost)));
        self.eval(&format!(
            "ok = rabbit_auth_backend_internal:clear_permissions({user}, {host}, <<\"tests\">>)"
        ))
        .await;
    }

    pub async fn change_password(&self, user: &str, password: &str) {
        let (user, password) = (binary(user), binary(password));
        self.eval(&format!(
            "ok = rabbit_auth_backend_internal:change_password({user}, {password}, <<\"tests\">>)"
        ))
        .await;
    }

    /// Waits until no channel has anything to do. A channel that goes to sleep forgets which permissions it has found, and
    /// an idle one goes to sleep after some seconds.
    pub async fn channels_sleep(&self) {
        until("all channels sleep", TIMEOUT, async || {
            let awake = self
                .eval(
                    "length([C || C <- rabbit_channel:list_local(), \
                     {current_function, {_, F, _}} <- [process_info(C, current_function)], F =/= hibernate])",
                )
                .await;
            awake == "0"
        })
        .await;
    }

    /// How many connections and channels were opened since the node started: its own count, of all virtual hosts.
    pub async fn opened(&self) -> (u64, u64) {
        let counts = self
            .eval("[Row] = ets:tab2list(connection_churn_metrics), {element(2, Row), element(4, Row)}")
            .await;
        let mut counts = counts
            .trim_matches(['{', '}'])
            .split(',')
            .map(|count| count.trim().parse().expect("a number"));
        let mut next = || counts.next().expect("two numbers");
        (next(), next())
    }

    /// Makes the node read the files of certificates again for the next handshake, which it does by itself every two
    /// minutes.
    pub async fn forget_certificates(&self) {
        self.eval("ok = ssl:clear_pem_cache()").await;
    }

    /// Lets clients log in by the common name of their certificate, as the plug-in `rabbitmq_auth_mechanism_ssl` does. It
    /// looks whether certificates are verified in the options of the first listener, which there is none of.
    pub async fn allow_external(&self) {
        let code = self.installation.join("plugins/rabbitmq_auth_mechanism_ssl-*/ebin");
        // Its boot step, for a node that has started.
        self.eval(&format!(
            "[Code] = filelib:wildcard(\"{}\"), true = code:add_patha(Code), \
             ok = application:load(rabbitmq_auth_mechanism_ssl), \
             ok = application:set_env(rabbit, ssl_cert_login_from, common_name), \
             ok = application:set_env(rabbit, ssl_options, [{{verify, verify_peer}}]), \
             {{ok, Known}} = application:get_env(rabbit, auth_mechanisms), \
             ok = application:set_env(rabbit, auth_mechanisms, ['EXTERNAL' | Known]), \
             ok = rabbit_registry:register(auth_mechanism, <<\"EXTERNAL\">>, rabbit_auth_mechanism_ssl)",
            code.display()
        ))
        .await;
    }

    /// Stops the broker, but not its Erlang node: clients are disconnected and refused.
    pub async fn stop_app(&self) {
        self.eval("ok = rabbit:stop()").await;
    }

    pub async fn start_app(&self) {
        until("RabbitMQ accepts clients again", TIMEOUT, async || {
            // Not once: as long as an earlier start is not quite over (its caller looks every 200 ms whether it is),
            // another one says `ok` and does nothing, also when the broker has been stopped in between.
            self.eval("ok = rabbit:start()").await;
            self.accepts_clients().await
        })
        .await;
    }

    /// Closes the connections of all virtual hosts with `CONNECTION_FORCED`.
    pub async fn close_all_connections(&self) {
        self.close_connections("true").await;
    }

    /// Closes those of one virtual host only, which the tests of a shared node need.
    pub async fn close_connections_of(&self, vhost: &str) {
        let vhost = binary(&vhost_name(vhost));
        self.close_connections(&format!(
            "rabbit_networking:connection_info(P, [vhost]) =:= [{{vhost, {vhost}}}]"
        ))
        .await;
    }

    async fn close_connections(&self, which: &str) {
        self.eval(&format!(
            "[ok = rabbit_networking:close_connection(P, \"closed by a test\") \
             || P <- rabbit_networking:connections(), {which}]"
        ))
        .await;
    }

    /// Raises or clears the memory alarm, which blocks every publisher of the node.
    pub async fn memory_alarm(&self, on: bool) {
        let watermark = if on { "0.0" } else { "0.4" };
        self.eval(&format!(
            "ok = vm_memory_monitor:set_vm_memory_high_watermark({watermark})"
        ))
        .await;
        until("the memory alarm changes", TIMEOUT, async || {
            let count = self.eval("length(rabbit_alarm:get_alarms())").await;
            (count == "0") != on
        })
        .await;
    }

    /// Sets a policy for queues whose names match; `definition` is JSON.
    pub async fn set_policy(&self, vhost: &str, name: &str, pattern: &str, definition: &str) {
        let (vhost, name) = (binary(&vhost_name(vhost)), binary(name));
        let (pattern, definition) = (binary(pattern), binary(definition));
        self.eval(&format!(
            "ok = rabbit_policy:parse_set({vhost}, {name}, {pattern}, {definition}, 0, \
             <<\"queues\">>, <<\"tests\">>)"
        ))
        .await;
    }

    pub async fn clear_policy(&self, vhost: &str, name: &str) {
        let (vhost, name) = (binary(&vhost_name(vhost)), binary(name));
        self.eval(&format!("ok = rabbit_policy:delete({vhost}, {name}, <<\"tests\">>)"))
            .await;
    }

    /// Deletes a queue whatever it holds and whoever uses it.
    pub async fn delete_queue(&self, vhost: &str, queue: &str) {
        let (vhost, queue) = (binary(&vhost_name(vhost)), binary(queue));
        self.eval(&format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r({vhost}, queue, {queue})), \
             {{ok, _}} = rabbit_amqqueue:delete(Q, false, false, <<\"tests\">>)"
        ))
        .await;
    }

    /// Messages that a quorum queue holds, delivered and not acknowledged ones included; `None` while it does not answer.
    pub async fn messages_in(&self, vhost: &str, queue: &str) -> Option<u64> {
        let (vhost, queue) = (binary(&vhost_name(vhost)), binary(queue));
        // Functions by name are new in 4.x, and from 4.3 on no others are taken.
        let count = format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r({vhost}, queue, {queue})), \
             Ask = fun(Total) -> ra:leader_query(amqqueue:get_pid(Q), Total) end, \
             Answer = try Ask(fun rabbit_fifo:query_messages_total/1) \
                      catch error:function_clause -> Ask({{rabbit_fifo, query_messages_total, []}}) end, \
             case Answer of \
                 {{ok, {{_, N}}, _}} -> N; \
                 _ -> unknown \
             end"
        );
        self.eval(&count).await.parse().ok()
    }

    /// Evaluates an Erlang expression (without the final dot) in the node and returns its value.
    ///
    /// As `rabbitmqctl eval`, which takes a second and more for each call; this takes milliseconds.
    pub async fn eval(&self, expression: &str) -> String {
        let address = format!("127.0.0.1:{}", self.distribution_port);
        let mut command = Command::new("erl_call");
        // A name of its own for each call: the node refuses a second one of the same name, and `-r` draws the same
        // for all calls of one second.
        let name = format!("call{}", uuid::Uuid::new_v4().simple());
        command.args(["-h", &name, "-address", &address, "-c", COOKIE, "-e"]);
        let input = format!("{expression}.\n");
        let answer = self.run(command, &input).await;
        answer
            .strip_prefix("{ok, ")
            .and_then(|value| value.strip_suffix('}'))
            .unwrap_or_else(|| panic!("RabbitMQ: {expression}: {answer}"))
            .to_string()
    }

    /// Runs `rabbitmqctl` and returns what it printed; panics when it fails. Slow: see `eval`.
    pub async fn ctl(&self, args: &[&str]) -> String {
        let mut command = Command::new(self.installation.join("sbin/rabbitmqctl"));
        command.envs(self.environment());
        // The tool finds its libraries itself.
        command.env_remove("ERL_LIBS").env_remove("RABBITMQ_PLUGINS_DIR");
        command.arg("--quiet").args(args);
        self.run(command, "").await
    }

    async fn run(&self, mut command: Command, input: &str) -> String {
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(input.as_bytes()).await.expect("it reads");
        drop(stdin);
        let output = tokio::time::timeout(TIMEOUT, child.wait_with_output())
            .await
            .unwrap_or_else(|_| panic!("{command:?} hangs: is the node frozen?"))
            .expect("it can be waited for");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{command:?}: {stdout}{}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.guard.log_tail()
        );
        stdout.trim().to_string()
    }
}

/// The virtual host of an AMQP URL; anything else is a name already.
fn vhost_name(url: &str) -> String {
    match url.strip_prefix("amqp://") {
        None => url.to_string(),
        Some(rest) => {
            let name = rest.split_once('/').map_or("/", |(_, name)| name);
            name.replace("%2f", "/")
        }
    }
}

/// An Erlang binary with this text.
fn binary(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("<<\"{text}\">>")
}
