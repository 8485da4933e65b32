//! What a collection is called now. PocketBase lets people rename it, and says so to nobody; but its id
//! stays.

use std::sync::OnceLock;

use serde::Deserialize;

use super::{Http, SourceError, api::InCollection};

/// The id that `pb-nats init` gives the collection of roles beforehand, so that a relation can be made
/// in the same breath.
pub(crate) const ROLES_ID: &str = "pb_nats_roles";

/// The ids of the collections of users and roles, as far as they were seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Ids {
    pub(super) users: OnceLock<String>,
    pub(super) roles: OnceLock<String>,
}

/// The ids that a collection made under this name may have: PocketBase makes them of type and name.
pub(super) fn likely_ids(name: &str) -> [String; 2] {
    ["base", "auth"].map(|kind| format!("pbc_{}", crc32(format!("{kind}{name}").as_bytes())))
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

impl Http {
    /// The error that there is no such collection: if we are told, with the name that it has now.
    pub(super) async fn gone(&self, collection: String) -> SourceError {
        let is_roles = collection == self.names.roles;
        let seen = if is_roles { &self.ids.roles } else { &self.ids.users };
        let mut ids: Vec<String> = seen.get().cloned().into_iter().collect();
        ids.extend(likely_ids(&collection));
        ids.extend(is_roles.then(|| ROLES_ID.to_owned()));
        for id in ids {
            if let Some(now) = self.name_of(&id).await.filter(|it| *it != collection) {
                return SourceError::Renamed { collection, now };
            }
        }
        SourceError::NoCollection { collection }
    }

    /// What the collection with this id is called.
    async fn name_of(&self, id: &str) -> Option<String> {
        #[derive(Deserialize)]
        struct Page {
            items: Vec<InCollection>,
        }
        if let Ok(Some(schema)) = self.schema(id).await {
            return Some(schema.name);
        }
        // Whoever is no superuser is told by a record only.
        let answer = self.ask(self.records(id, &[("perPage", "1")])).await.ok()?;
        answer.json::<Page>().ok()?.items.pop().map(|it| it.collection)
    }
}

#[cfg(test)]
mod tests {
    /// As they are in a PocketBase.
    #[test]
    fn ids_are_made_of_type_and_name() {
        assert_eq!(super::likely_ids("_superusers")[1], "pbc_3142635823");
    }
}
