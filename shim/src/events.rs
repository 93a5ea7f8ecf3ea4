//! Events to containerd: in order, and none lost while containerd restarts.
//!
//! The stock publisher gives an event five tries and lets later ones overtake it. Here one task sends one event
//! at a time and goes on trying until containerd has taken it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use containerd_shim_protos::{
    api::ForwardRequest,
    shim::event::Envelope,
    shim_async::{Client, EventsClient},
};
use protobuf::{Message, well_known_types::timestamp::Timestamp};
use tokio::sync::{mpsc, oneshot};
use ttrpc::context;

use crate::options::pack;

/// Where containerd's ttrpc socket is, in the environment of `start`.
pub const ADDRESS_VARIABLE: &str = "TTRPC_ADDRESS";

/// Above this many unsent events the oldest is dropped, with a line in the log: containerd has been away for
/// long, and the shim's memory is bounded.
const MOST_WAITING: usize = 16 * 1024;

const SEND_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// One event on its way.
struct Event {
    topic: &'static str,
    envelope: Envelope,
}

/// What the sending task is told.
enum Order {
    Send(Event),
    /// Answer when everything before it has been taken.
    Flush(oneshot::Sender<()>),
}

/// Where the shim's parts put their events.
#[derive(Clone)]
pub struct Publisher {
    namespace: Arc<str>,
    queue: mpsc::UnboundedSender<Order>,
}

/// An event message with its topic and type url.
pub trait Topic: Message {
    /// containerd's topic.
    const TOPIC: &'static str;
    /// containerd's name of the message.
    const TYPE: &'static str;
}

macro_rules! topics {
    ($($message:ident => $topic:literal),* $(,)?) => {
        $(impl Topic for containerd_shim_protos::events::task::$message {
            const TOPIC: &'static str = $topic;
            const TYPE: &'static str = concat!("containerd.events.", stringify!($message));
        })*
    };
}

topics! {
    TaskCreate => "/tasks/create",
    TaskStart => "/tasks/start",
    TaskOOM => "/tasks/oom",
    TaskExit => "/tasks/exit",
    TaskDelete => "/tasks/delete",
    TaskExecAdded => "/tasks/exec-added",
    TaskExecStarted => "/tasks/exec-started",
    TaskPaused => "/tasks/paused",
    TaskResumed => "/tasks/resumed",
    TaskCheckpointed => "/tasks/checkpointed",
}

impl Publisher {
    /// Starts the sending task.
    #[must_use]
    pub fn start(namespace: &str, address: String) -> Publisher {
        let (queue, events) = mpsc::unbounded_channel();
        tokio::spawn(forward(address, events));
        Publisher {
            namespace: namespace.into(),
            queue,
        }
    }

    /// Puts an event at the end of the line.
    pub fn send<E: Topic>(&self, event: &E) {
        let mut envelope = Envelope::new();
        envelope.timestamp = protobuf::MessageField::some(Timestamp::now());
        envelope.namespace = self.namespace.to_string();
        envelope.topic = E::TOPIC.into();
        envelope.event = protobuf::MessageField::some(pack(E::TYPE, event));
        // The task lives as long as the runtime, so the queue is open.
        let _ = self.queue.send(Order::Send(Event {
            topic: E::TOPIC,
            envelope,
        }));
    }

    /// Waits until everything sent so far has reached containerd, at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        let (done, flushed) = oneshot::channel();
        let _ = self.queue.send(Order::Flush(done));
        if tokio::time::timeout(limit, flushed).await.is_err() {
            tracing::error!("containerd did not take the last events");
        }
    }
}

async fn forward(address: String, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut waiting: VecDeque<Order> = VecDeque::new();
    let mut client: Option<EventsClient> = None;
    let mut delay = FIRST_DELAY;
    loop {
        while let Ok(order) = orders.try_recv() {
            waiting.push_back(order);
        }
        while waiting.len() > MOST_WAITING {
            if let Some(Order::Send(event)) = waiting.pop_front() {
                tracing::error!(
                    topic = event.topic,
                    "containerd has been away too long: an event is dropped"
                );
            }
        }
        let event = match waiting.pop_front() {
            Some(Order::Send(event)) => event,
            Some(Order::Flush(done)) => {
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
                continue;
            }
            None => match orders.recv().await {
                Some(order) => {
                    waiting.push_back(order);
                    continue;
                }
                None => return,
            },
        };
        match send(&address, &mut client, &event).await {
            Ok(()) => delay = FIRST_DELAY,
            Err(error) => {
                tracing::warn!(topic = event.topic, %error, "containerd did not take an event: trying again");
                waiting.push_front(Order::Send(event));
                client = None;
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(LONGEST_DELAY);
            }
        }
    }
}

async fn send(address: &str, client: &mut Option<EventsClient>, event: &Event) -> Result<(), ttrpc::Error> {
    let events = match client {
        Some(events) => events,
        None => {
            let address = if address.contains("://") {
                address.to_owned()
            } else {
                format!("unix://{address}")
            };
            client.insert(EventsClient::new(Client::connect(&address).await?))
        }
    };
    let mut request = ForwardRequest::new();
    request.envelope = protobuf::MessageField::some(event.envelope.clone());
    let context = context::with_duration(SEND_TIMEOUT);
    events.forward(context, &request).await.map(drop)
}
