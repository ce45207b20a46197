//! Names that are no setting: what was meant, and whether Kubernetes set them.

use super::declared::DECLARED;

/// Names that are further from every known one than this are not typing errors.
const DISTANCE_MAX: usize = 4;

/// The known name that `name` was probably meant to be.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    DECLARED
        .iter()
        .map(|known| (strsim::damerau_levenshtein(&upper, known.name), known.name))
        .min()
        .filter(|(distance, _)| *distance <= DISTANCE_MAX)
        .map(|(_, known)| known)
}

/// Whether Kubernetes set this variable, which it does for each Service whose name starts with `keydb`
/// (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>).
pub(super) fn is_from_kubernetes(name: &str, value: &str) -> bool {
    const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];
    let is_url = PROTOCOLS.into_iter().any(|protocol| {
        value
            .strip_prefix(protocol)
            .is_some_and(|rest| rest.starts_with("://"))
    });
    let parts: Vec<&str> = name.split('_').collect();
    let is_service = parts
        .windows(2)
        .any(|pair| pair[0] == "SERVICE" && matches!(pair[1], "HOST" | "PORT"));
    // KEYDB_PORT_50051_TCP and KEYDB_PORT_50051_TCP_{PROTO,PORT,ADDR}
    let is_port = parts.windows(3).any(|triple| {
        triple[0] == "PORT"
            && triple[1].bytes().all(|byte| byte.is_ascii_digit())
            && PROTOCOLS.contains(&triple[2].to_ascii_lowercase().as_str())
    });
    is_service || is_port || (is_url && name.ends_with("_PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_is_taken_back_to_the_nearest_known_one() {
        assert_eq!(nearest("KEYDB_PROT"), Some("KEYDB_PORT"));
        assert_eq!(nearest("KEYDB_NODE_ADDRESES"), Some("KEYDB_NODE_ADDRESSES"));
        assert_eq!(nearest("KEYDB_node_id"), Some("KEYDB_NODE_ID"));
        assert_eq!(nearest("KEYDB_SOMETHING_QUITE_DIFFERENT"), None);
    }

    #[test]
    fn what_kubernetes_sets_for_a_service_is_recognised() {
        for (name, value) in [
            ("KEYDB_PORT", "tcp://10.96.0.7:50051"),
            ("KEYDB_SERVICE_HOST", "10.96.0.7"),
            ("KEYDB_SERVICE_PORT", "50051"),
            ("KEYDB_SERVICE_PORT_GRPC", "50051"),
            ("KEYDB_PORT_50051_TCP", "tcp://10.96.0.7:50051"),
            ("KEYDB_PORT_50051_TCP_ADDR", "10.96.0.7"),
            ("KEYDB_HEADLESS_SERVICE_HOST", "10.96.0.7"),
            ("KEYDB_HEADLESS_PORT", "tcp://10.96.0.7:50051"),
        ] {
            assert!(is_from_kubernetes(name, value), "{name}={value}");
        }
        for (name, value) in [("KEYDB_PORT", "50051"), ("KEYDB_PROT", "50051")] {
            assert!(!is_from_kubernetes(name, value), "{name}={value}");
        }
    }
}
