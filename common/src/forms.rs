//! Forms that serde's derived parsers take and the contract does not: an object written as the list of its members' values, a name
//! written as an object (`{"OPEN": null}`).

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A `T` written as a JSON object, and as nothing else.
#[derive(Debug, Clone)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnlyMaps<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMaps<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(OnlyMaps(PhantomData))
    }
}

impl<T: Serialize> Serialize for Object<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// For an optional member that is an object: `#[serde(default, deserialize_with = "object")]`. Null is none.
pub(crate) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|Object(value)| value))
}

/// Lets an enumeration that callers write be read from a string alone. It derives serde's parsers with `#[serde(remote = "Self")]`,
/// which makes them functions of its own; these are the traits around them.
macro_rules! from_its_name_alone {
    ($name:ty) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let name = <String as serde::Deserialize>::deserialize(deserializer)?;
                <$name>::deserialize(serde::de::IntoDeserializer::into_deserializer(name))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                <$name>::serialize(self, serializer)
            }
        }
    };
}
pub(crate) use from_its_name_alone;

#[cfg(test)]
mod tests {
    use crate::catalogue::PaymentFailurePolicy;
    use crate::messages::tokens::QueueState;

    #[test]
    fn a_name_is_a_string_and_nothing_else() {
        let state = |text: &str| serde_json::from_str::<QueueState>(text).ok();
        assert_eq!(state("\"OPEN\""), Some(QueueState::Open));
        assert_eq!(state("\"DRAI\\u004eING\""), Some(QueueState::Draining));
        for wrong in ["{\"OPEN\": null}", "[\"OPEN\"]", "\"open\"", "\"\"", "0", "null"] {
            assert_eq!(state(wrong), None, "{wrong}");
        }
        assert_eq!(serde_json::to_string(&QueueState::Paused).unwrap(), "\"PAUSED\"");
        assert!(serde_json::from_str::<PaymentFailurePolicy>("{\"keep_hold\": null}").is_err());
        let policy = serde_json::from_value::<PaymentFailurePolicy>("release_hold".into());
        assert_eq!(policy.unwrap(), PaymentFailurePolicy::ReleaseHold);
    }
}
