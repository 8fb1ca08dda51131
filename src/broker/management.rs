//! What RabbitMQ's management plug-in tells of exchanges, bindings and queues. Only `check` and `status` ask it: the relay
//! itself needs AMQP and no more.

mod http;
mod topology;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use serde_json::Value;

use crate::config::{Secret, Tls};
use http::{Answer, Client};
use topology::Alternate;

pub use topology::{Queue, Routed, Topology};

/// Exchanges that are looked at, those that lie behind others included.
const EXCHANGES: usize = 100;

/// Queues that are looked at.
const QUEUES: usize = 200;

/// Bound of all questions together.
const PATIENCE: Duration = Duration::from_secs(60);

/// The broker itself.
pub struct About {
    /// What it is: `RabbitMQ 4.0.5`.
    pub product: String,
    /// For a person: why it takes no messages. Over AMQP only those learn of it who publish.
    pub alarms: Vec<String>,
}

/// What there is, as far as it matters to some exchanges.
pub struct View {
    /// The broker.
    pub about: About,
    /// What is bound to what.
    pub topology: Topology,
    /// There was more than is looked at.
    pub cut: bool,
}

/// How the plug-in is asked.
pub struct Access<'a> {
    /// Where it is, with user and password.
    pub url: &'a Secret,
    /// Of `https`.
    pub tls: &'a Tls,
    /// Bound of the connection, and of each question.
    pub timeout: Duration,
}

/// Which broker it is, and whether it takes messages.
///
/// # Errors
/// As for [`look`].
pub async fn about(access: Access<'_>) -> Result<About, String> {
    itself(&mut Client::connect(&access).await?).await
}

/// Looks at these exchanges of a virtual host and at all that is bound to them. `queue_names`: routing keys for the default
/// exchange, which leads to the queues of these names.
///
/// # Errors
/// Where nothing can be learned; the text says what to do, and holds no credentials.
pub async fn look(
    access: Access<'_>,
    vhost: &str,
    exchanges: &BTreeSet<String>,
    queue_names: &BTreeSet<String>,
) -> Result<View, String> {
    let looking = async {
        let mut client = Client::connect(&access).await?;
        let about = itself(&mut client).await?;
        let mut visit = Visit {
            client,
            vhost,
            topology: Topology::default(),
            cut: false,
        };
        visit.exchanges(exchanges).await?;
        visit.queues(queue_names).await?;
        Ok(View {
            about,
            topology: visit.topology,
            cut: visit.cut,
        })
    };
    tokio::time::timeout(PATIENCE, looking)
        .await
        .unwrap_or_else(|_| Err(format!("not all that was asked was answered within {PATIENCE:?}")))
}

async fn itself(client: &mut Client) -> Result<About, String> {
    Ok(About {
        product: name(client).await?,
        alarms: alarms(client).await?,
    })
}

async fn alarms(client: &mut Client) -> Result<Vec<String>, String> {
    let nodes = client.get(&["api", "nodes"]).await?.granted()?.unwrap_or_default();
    let nodes = nodes.as_array().into_iter().flatten();
    let alarms = nodes.flat_map(|node| {
        let raised = [("mem_alarm", "memory"), ("disk_free_alarm", "disk")].into_iter();
        let raised = raised.filter(|(field, _)| node[field] == true);
        raised.map(|(_, what)| format!("{what} alarm of {}", node["name"].as_str().unwrap_or("a node")))
    });
    Ok(alarms.collect())
}

async fn name(client: &mut Client) -> Result<String, String> {
    let overview = client.get(&["api", "overview"]).await?.granted()?.unwrap_or_default();
    let version = overview["rabbitmq_version"]
        .as_str()
        .ok_or("what answers there is not RabbitMQ's management plug-in")?;
    // Its makers sell others under the same version scheme.
    let product = overview["product_name"].as_str().unwrap_or("RabbitMQ");
    Ok(format!("{product} {version}"))
}

/// One way through the broker's objects.
struct Visit<'a> {
    client: Client,
    vhost: &'a str,
    topology: Topology,
    cut: bool,
}

impl Visit<'_> {
    async fn exchanges(&mut self, from: &BTreeSet<String>) -> Result<(), String> {
        let mut ahead: VecDeque<String> = from.iter().filter(|name| !name.is_empty()).cloned().collect();
        while let Some(name) = ahead.pop_front() {
            if self.topology.has_exchange(&name) {
                continue;
            }
            if self.topology.exchanges() == EXCHANGES {
                self.cut = true;
                break;
            }
            let path = ["api", "exchanges", self.vhost, &name];
            let Some(exchange) = self.client.get(&path).await?.granted()? else {
                self.topology.no_exchange(name);
                continue;
            };
            let alternate = match exchange["arguments"]["alternate-exchange"].as_str() {
                Some(alternate) => Alternate::Exchange(alternate.to_owned()),
                None => self.alternate_by_policy(&exchange).await?,
            };
            let path = ["api", "exchanges", self.vhost, &name, "bindings", "source"];
            let bindings = self.client.get(&path).await?.granted()?.unwrap_or_default();
            ahead.extend(self.topology.add_exchange(name, &exchange, &bindings, alternate));
        }
        Ok(())
    }

    /// A policy wants the tag `policymaker`, which is more than a relay's operator should need.
    async fn alternate_by_policy(&mut self, exchange: &Value) -> Result<Alternate, String> {
        let Some(policy) = exchange["policy"].as_str() else {
            return Ok(Alternate::None);
        };
        let policy = match self.client.get(&["api", "policies", self.vhost, policy]).await? {
            Answer::Found(policy) => policy,
            Answer::Missing => return Ok(Alternate::None),
            Answer::Refused => return Ok(Alternate::Hidden),
        };
        let alternate = policy["definition"]["alternate-exchange"].as_str();
        Ok(alternate.map_or(Alternate::None, |name| Alternate::Exchange(name.to_owned())))
    }

    async fn queues(&mut self, names: &BTreeSet<String>) -> Result<(), String> {
        let named = names.iter().cloned();
        let wanted: BTreeSet<String> = self.topology.bound_queues().into_iter().chain(named).collect();
        self.cut |= wanted.len() > QUEUES;
        for name in wanted.into_iter().take(QUEUES) {
            let found = self
                .client
                .get(&["api", "queues", self.vhost, &name])
                .await?
                .granted()?;
            self.topology.add_queue(name, found.as_ref());
        }
        Ok(())
    }
}
