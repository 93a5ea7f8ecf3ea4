// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// Tells of what is written on one file system: which ranges of files that are followed, and whose attributes were set.
//
// Raw tracepoints only: kernels without kprobes and fentry have them. Types hold the members that are used and no more;
// where those are in the running kernel is found at loading (CO-RE).

typedef unsigned char u8;
typedef unsigned int u32;
typedef int s32;
typedef unsigned long long u64;
typedef long long s64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define UINT(name, value) int (*name)[value]
#define TYPE(name, value) typeof(value) *name

enum {
	HASH = 1,
	ARRAY = 2,
	RING = 27,
	NO_PREALLOC = 1,
	NO_WAKEUP = 1,
	FORCE_WAKEUP = 2,
};

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*map_delete)(void *map, const void *key) = (void *)3;
static long (*read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static long (*read_string)(void *to, u32 size, const void *from) = (void *)115;
static long (*ring_output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;

// --- the kernel's types ---------------------------------------------------------------------------------

#define KERNEL __attribute__((preserve_access_index))

struct hlist_node {
	struct hlist_node *next;
} KERNEL;
struct hlist_head {
	struct hlist_node *first;
} KERNEL;
struct super_block {
	u32 s_dev;
} KERNEL;
typedef struct {
	int counter;
} KERNEL atomic_t;
struct inode {
	unsigned long i_ino;
	atomic_t i_count;
	u32 i_generation;
	struct super_block *i_sb;
	struct hlist_head i_dentry;
} KERNEL;
struct qstr {
	const unsigned char *name;
} KERNEL;
struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	union {
		struct hlist_node d_alias;
	} d_u;
} KERNEL;
struct address_space {
	struct inode *host;
} KERNEL;
struct folio {
	unsigned long index;
	unsigned long _flags_1;
} KERNEL;
// Before 6.6.
struct folio___old {
	unsigned char _folio_order;
} KERNEL;
struct file {
	struct inode *f_inode;
} KERNEL;
struct kiocb {
	struct file *ki_filp;
	s64 ki_pos;
} KERNEL;
struct iov_iter {
	_Bool data_source;
	unsigned long count;
} KERNEL;
enum pageflags {
	PG_head,
};
struct raw_args {
	u64 args[0];
};

#define READ(from, member)                                                               \
	({                                                                               \
		typeof((from)->member) read_;                                            \
		read_kernel(&read_, sizeof(read_),                                       \
			    __builtin_preserve_access_index(&(from)->member));           \
		read_;                                                                   \
	})
#define EXISTS(member) __builtin_preserve_field_info(member, 2)
#define OFFSET(member) __builtin_preserve_field_info(member, 0)

// --- what is shared with the keeper ---------------------------------------------------------------------

// The file system, as the kernel numbers it.
const volatile u32 device = 0;
// Where the inode is in XFS's own.
const volatile u32 vnode = 0;
const volatile u32 page_shift = 12;

// Files that are followed, by inode.
struct {
	UINT(type, HASH);
	UINT(max_entries, 8192);
	TYPE(key, u64);
	TYPE(value, u32);
} files SEC(".maps");

// Direct writes to them that are under way, by their kiocb.
struct {
	UINT(type, HASH);
	UINT(map_flags, NO_PREALLOC);
	UINT(max_entries, 8192);
	TYPE(key, u64);
	TYPE(value, u32);
} direct SEC(".maps");

struct {
	UINT(type, RING);
	UINT(max_entries, 4 << 20);
} told SEC(".maps");

// How much did not fit there.
struct {
	UINT(type, ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, u64);
} lost SEC(".maps");

// Bytes of a file that is followed may be written to.
struct range {
	u64 inode;
	u64 begin;
	u64 end;
};

// Attributes were set.
struct named {
	u64 inode;
	u64 dir;
	u32 generation;
	u32 dir_generation;
	char name[256];
};

// --- ranges ---------------------------------------------------------------------------------------------

INLINE void lose(void)
{
	u32 first = 0;
	u64 *count = map_lookup(&lost, &first);

	if (count)
		__sync_fetch_and_add(count, 1);
}

INLINE void tell(void *what, u64 size, u64 flags)
{
	if (ring_output(&told, what, size, flags))
		lose();
}

INLINE int is_ours(struct inode *inode)
{
	struct super_block *on = READ(inode, i_sb);

	return READ(on, s_dev) == device;
}

INLINE int followed(struct inode *inode, u64 *number)
{
	if (!is_ours(inode))
		return 0;
	*number = READ(inode, i_ino);
	return map_lookup(&files, number) != 0;
}

INLINE void written(struct inode *inode, u64 begin, u64 end)
{
	struct range range = { .begin = begin, .end = end };

	if (followed(inode, &range.inode))
		tell(&range, sizeof(range), NO_WAKEUP);
}

INLINE u32 order(struct folio *folio)
{
	// Its flags stand first, whatever they are called.
	unsigned long flags;
	u32 head = __builtin_preserve_enum_value(*(enum pageflags *)PG_head, 1);
	struct folio___old *old = (void *)folio;

	read_kernel(&flags, sizeof(flags), folio);
	if (!(flags >> (head & 63) & 1))
		return 0;
	if (EXISTS(old->_folio_order))
		return READ(old, _folio_order) & 31;
	return READ(folio, _flags_1) & 31;
}

// writeback_dirty_folio(folio, mapping): it was clean until now.
SEC("raw_tp/writeback_dirty_folio")
int dirty_folio(struct raw_args *ctx)
{
	struct folio *folio = (void *)ctx->args[0];
	struct address_space *mapping = (void *)ctx->args[1];
	struct range range;

	if (!followed(READ(mapping, host), &range.inode))
		return 0;
	range.begin = (u64)READ(folio, index) << page_shift;
	range.end = range.begin + (1ULL << (page_shift + order(folio)));
	tell(&range, sizeof(range), NO_WAKEUP);
	return 0;
}

// iomap_dio_rw_begin(iocb, iter, ...)
SEC("raw_tp/iomap_dio_rw_begin")
int direct_begin(struct raw_args *ctx)
{
	struct kiocb *call = (void *)ctx->args[0];
	struct iov_iter *bytes = (void *)ctx->args[1];
	struct file *file = READ(call, ki_filp);
	struct range range;
	u64 key = ctx->args[0];
	u32 none = 0;

	if (!READ(bytes, data_source) || !followed(READ(file, f_inode), &range.inode))
		return 0;
	range.begin = READ(call, ki_pos);
	range.end = range.begin + READ(bytes, count);
	tell(&range, sizeof(range), NO_WAKEUP);
	// The bytes are not there yet.
	if (map_update(&direct, &key, &none, 0))
		lose();
	return 0;
}

// iomap_dio_complete(iocb, error, ret): the place may be the one before or after it.
SEC("raw_tp/iomap_dio_complete")
int direct_end(struct raw_args *ctx)
{
	struct kiocb *call = (void *)ctx->args[0];
	struct file *file = READ(call, ki_filp);
	s64 done = ctx->args[2];
	s64 at = READ(call, ki_pos);
	u64 key = ctx->args[0];

	// Of a write that was told of when it began.
	if (map_delete(&direct, &key))
		return 0;
	if (done > 0)
		written(READ(file, f_inode), at > done ? at - done : 0, at + done);
	else
		written(READ(file, f_inode), 0, ~0ULL);
	return 0;
}

// Anything that begins with an inode: its extents are about to change, or have.
SEC("raw_tp/inode")
int whole(struct raw_args *ctx)
{
	written((void *)ctx->args[0], 0, ~0ULL);
	return 0;
}

// ext4_es_remove_extent(inode, ...): older kernels tell that a hole is to be punched before they lock the inode, and of
// this with the lock held. It goes with inodes that leave the memory, too: those nobody uses.
SEC("raw_tp/ext4_es_remove_extent")
int extent_gone(struct raw_args *ctx)
{
	struct inode *inode = (void *)ctx->args[0];
	u64 number;

	if (followed(inode, &number) && READ(inode, i_count.counter) > 0)
		written(inode, 0, ~0ULL);
	return 0;
}

// The same of XFS, whose inode holds the other one.
SEC("raw_tp/xfs_inode")
int xfs_whole(struct raw_args *ctx)
{
	written((void *)(ctx->args[0] + vnode), 0, ~0ULL);
	return 0;
}

// xfs_reflink_remap_range(from, at, length, to, at)
SEC("raw_tp/xfs_reflink_remap_range")
int xfs_cloned(struct raw_args *ctx)
{
	written((void *)(ctx->args[3] + vnode), 0, ~0ULL);
	return 0;
}

// --- attributes -----------------------------------------------------------------------------------------

INLINE void attributes(struct inode *inode)
{
	struct named named = {};
	struct dentry *at, *dir;
	struct inode *above;
	struct hlist_head names;

	if (!is_ours(inode))
		return;
	names = READ(inode, i_dentry);
	if (!names.first)
		return;
	at = 0;
	at = (void *)names.first - OFFSET(at->d_u.d_alias);
	dir = READ(at, d_parent);
	above = READ(dir, d_inode);
	named.inode = READ(inode, i_ino);
	named.generation = READ(inode, i_generation);
	named.dir = READ(above, i_ino);
	named.dir_generation = READ(above, i_generation);
	long length = read_string(named.name, sizeof(named.name), READ(at, d_name.name));
	if (length < 1 || length > sizeof(named.name))
		return;
	tell(&named, sizeof(named) - sizeof(named.name) + length, FORCE_WAKEUP);
}

// writeback_mark_inode_dirty(inode, flags): where attributes were set all of it is dirty, which is three flags, and fewer
// where it was written to. Which three depends on the kernel.
SEC("raw_tp/writeback_mark_inode_dirty")
int marked(struct raw_args *ctx)
{
	u32 flags = ctx->args[1];

	flags &= flags - 1;
	if (flags & (flags - 1))
		attributes((void *)ctx->args[0]);
	return 0;
}

SEC("raw_tp/xfs_setattr")
int xfs_set(struct raw_args *ctx)
{
	attributes((void *)(ctx->args[0] + vnode));
	return 0;
}

char licence[] SEC("license") = "GPL";
