//! The slot of a cluster to which a key belongs.

/// Slots of a cluster.
pub(crate) const SLOTS: u64 = 16 * 1024;

/// The slot of a key, from 0 to 16383: CRC16 of what stands between the first `{` and the next `}`, where something
/// does, else of the whole key (src/cluster.c, keyHashSlot).
pub fn slot_of(key: &[u8]) -> u16 {
    let hashed = tag(key).unwrap_or(key);
    let crc = hashed.iter().fold(0u16, |crc, byte| {
        crc << 8 ^ CRC16[usize::from((crc >> 8) as u8 ^ *byte)]
    });
    crc % SLOTS as u16
}

/// CRC16 of each byte, with the polynomial 0x1021, initial value 0, not reflected.
const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = ((byte as u16) << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                crc << 1 ^ 0x1021
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// Whether only a part of the key says which slot it is of: what follows that part does not matter.
pub fn has_tag(key: &[u8]) -> bool {
    tag(key).is_some()
}

fn tag(key: &[u8]) -> Option<&[u8]> {
    let from = key.iter().position(|byte| *byte == b'{')? + 1;
    let rest = &key[from..];
    let end = rest.iter().position(|byte| *byte == b'}')?;
    Some(&rest[..end]).filter(|tag| !tag.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{has_tag, slot_of};

    #[test]
    fn slots_are_those_of_the_engines() {
        // The check value of the CRC, and what CLUSTER KEYSLOT answers.
        assert_eq!(slot_of(b"123456789"), 0x31c3);
        assert_eq!(slot_of(b"foo"), 12_182);
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
        assert_eq!(slot_of(b"foo{}{bar}"), 8363);
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
        assert_eq!(slot_of(b"foo{bar}{zap}"), slot_of(b"bar"));
        assert_eq!(slot_of(b""), 0);
        assert!(has_tag(b"a{b}") && !has_tag(b"a{}{b}") && !has_tag(b"a{b"));
    }
}
