use std::fmt;

/// The ways of connecting that every supported nats-server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionType {
    /// The NATS protocol.
    Standard,
    /// The NATS protocol in a WebSocket.
    Websocket,
    /// A leaf node.
    Leafnode,
    /// A leaf node in a WebSocket.
    LeafnodeWs,
    /// MQTT.
    Mqtt,
    /// MQTT in a WebSocket.
    MqttWs,
}

/// Some of the ways of connecting.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionTypes {
    /// One bit for each, so that many users take little room.
    bits: u8,
}

impl ConnectionType {
    const ALL: [(&'static str, ConnectionType); 6] = [
        ("STANDARD", ConnectionType::Standard),
        ("WEBSOCKET", ConnectionType::Websocket),
        ("LEAFNODE", ConnectionType::Leafnode),
        ("LEAFNODE_WS", ConnectionType::LeafnodeWs),
        ("MQTT", ConnectionType::Mqtt),
        ("MQTT_WS", ConnectionType::MqttWs),
    ];

    /// Reads nats-server's word for it, in either case, as nats-server does.
    pub fn parse(text: &str) -> Option<ConnectionType> {
        ConnectionType::ALL.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|it| it.1)
    }

    /// nats-server's word for it.
    pub fn as_str(self) -> &'static str {
        ConnectionType::ALL.iter().find(|(_, it)| *it == self).expect("all are listed").0
    }
}

impl ConnectionTypes {
    /// Whether it is none of them.
    pub fn is_empty(self) -> bool {
        self.bits == 0
    }

    /// Whether it is one of them.
    pub fn contains(self, it: ConnectionType) -> bool {
        self.bits & (1 << it as u8) != 0
    }

    /// Whether each of them is one of the others.
    pub fn is_subset(self, others: ConnectionTypes) -> bool {
        self.bits & !others.bits == 0
    }

    /// They and this one.
    pub fn insert(&mut self, it: ConnectionType) {
        self.bits |= 1 << it as u8;
    }

    /// Each of them, in the order in which they are written.
    pub fn iter(self) -> impl Iterator<Item = ConnectionType> {
        ConnectionType::ALL.into_iter().map(|(_, it)| it).filter(move |it| self.contains(*it))
    }
}

impl FromIterator<ConnectionType> for ConnectionTypes {
    fn from_iter<T: IntoIterator<Item = ConnectionType>>(types: T) -> ConnectionTypes {
        let mut all = ConnectionTypes::default();
        types.into_iter().for_each(|it| all.insert(it));
        all
    }
}

impl fmt::Debug for ConnectionTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
