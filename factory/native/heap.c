/* Large blocks of memory apart from small ones, for what preloads this library (factory/run/launch.py).
 *
 * glibc cuts small blocks out of the holes that large ones leave, and looks for a hole with room to move a tensor to a
 * multiple of 64 bytes: the hole of a tensor holds no other of its size, and a step's heap is up to a fifth higher than
 * what is ever held at once. Here a block takes the smallest hole that holds it.
 * factory/estimate/heap.py does the same on sizes alone; LARGE and UNIT are of factory/native/__init__.py.
 */
#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define MOST ((size_t)1 << 18)  /* holes; more are not used again */
#define STEP ((size_t)64 << 20) /* bytes that are made ours at a time */

/* Who has what we do not: glibc, or an allocator that something else loads behind us, whose blocks come here too. */
#define NEXT(name)                                                                    \
    ({                                                                                \
        static __typeof__(name) *theirs;                                              \
        if (!theirs) *(void **)&theirs = after_us(#name);                             \
        theirs;                                                                       \
    })

typedef struct {
    char *start;
    size_t size;
} stretch;

static char *bottom, *top, *ready, *end; /* of the addresses that are ours; up to `ready` they may be written to */
static stretch holes[MOST];              /* by address, no two of them neighbours */
static size_t count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* NULL while it is asked by itself: dlsym gives back what it once said of an error. */
static void *after_us(const char *name) {
    static __thread int asked __attribute__((tls_model("initial-exec")));
    if (asked) return NULL;
    asked = 1;
    void *found = dlsym(RTLD_NEXT, name);
    asked = 0;
    return found;
}

static void enter(void) { pthread_mutex_lock(&lock); }
static void leave(void) { pthread_mutex_unlock(&lock); }

/* As many addresses as the machine has memory, none of which a system that counts strictly counts yet. */
__attribute__((constructor)) static void reserve(void) {
    struct rlimit limit;
    size_t bytes = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    if (getrlimit(RLIMIT_AS, &limit) || limit.rlim_cur != RLIM_INFINITY) return; /* addresses are dear */
    if (pthread_atfork(enter, leave, leave)) return;
    void *found = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return;
    bottom = top = ready = found;
    end = bottom + bytes;
}

static int is_ours(const void *block) { return (const char *)block >= bottom && (const char *)block < end; }

/* A block's whole size stands in the UNIT before it. */
static size_t *size_of(void *block) { return (size_t *)((char *)block - UNIT); }

static void forget(size_t at) { memmove(holes + at, holes + at + 1, (--count - at) * sizeof *holes); }

/* The smallest that holds so much, the first of several, or `count`. */
static size_t smallest(size_t size) {
    size_t found = count;
    for (size_t at = 0; at < count; at++)
        if (holes[at].size >= size && (found == count || holes[at].size < holes[found].size)) found = at;
    return found;
}

/* Whether what lies below may be written to. */
static int make_ready(char *above) {
    if (above <= ready) return 1;
    size_t bytes = ((size_t)(above - ready) + STEP - 1) / STEP * STEP;
    if (bytes > (size_t)(end - ready)) bytes = (size_t)(end - ready);
    if (mprotect(ready, bytes, PROT_READ | PROT_WRITE)) return 0;
    ready += bytes;
    return 1;
}

static void *take(size_t asked) {
    size_t size = (asked + 2 * UNIT - 1) / UNIT * UNIT, at = smallest(size);
    char *start;
    if (at < count) {
        start = holes[at].start;
        if (holes[at].size == size) {
            forget(at);
        } else {
            holes[at].start += size;
            holes[at].size -= size;
        }
    } else {
        int grows = count && holes[count - 1].start + holes[count - 1].size == top;
        start = grows ? holes[count - 1].start : top;
        if (size > (size_t)(end - start) || !make_ready(start + size)) return NULL; /* glibc says what it can do */
        count -= grows;
        top = start + size;
    }
    *(size_t *)start = size;
    return start + UNIT;
}

static void give(void *block) {
    stretch given = {(char *)size_of(block), *size_of(block)};
    size_t at = 0;
    for (size_t over = count; at < over;) {
        size_t middle = (at + over) / 2;
        if (holes[middle].start < given.start) at = middle + 1;
        else over = middle;
    }
    if (at < count && holes[at].start == given.start + given.size) {
        given.size += holes[at].size;
        forget(at);
    }
    if (at && holes[at - 1].start + holes[at - 1].size == given.start) {
        holes[at - 1].size += given.size;
    } else if (count < MOST) {
        memmove(holes + at + 1, holes + at, (count++ - at) * sizeof *holes);
        holes[at] = given;
    }
}

int posix_memalign(void **block, size_t alignment, size_t size) {
    if (bottom && alignment == UNIT && size >= LARGE && size <= (size_t)(end - bottom)) {
        enter();
        void *made = take(size);
        leave();
        if (made) {
            *block = made;
            return 0;
        }
    }
    return NEXT(posix_memalign)(block, alignment, size);
}

void free(void *block) {
    if (!is_ours(block)) {
        void (*theirs)(void *) = NEXT(free);
        if (theirs) theirs(block);
        return;
    }
    enter();
    give(block);
    leave();
}

void *realloc(void *block, size_t size) {
    if (!is_ours(block)) return NEXT(realloc)(block, size);
    void *made = size ? malloc(size) : NULL;
    size_t had = *size_of(block) - UNIT;
    if (made) memcpy(made, block, had < size ? had : size);
    if (made || !size) free(block); /* as glibc does, of nothing it makes no block */
    return made;
}

size_t malloc_usable_size(void *block) {
    return is_ours(block) ? *size_of(block) - UNIT : NEXT(malloc_usable_size)(block);
}

/* What is free goes back to the system. */
int malloc_trim(size_t pad) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    enter();
    for (size_t at = 0; at < count; at++) {
        uintptr_t from = ((uintptr_t)holes[at].start + page - 1) / page * page;
        uintptr_t to = ((uintptr_t)holes[at].start + holes[at].size) / page * page;
        if (from < to) madvise((void *)from, to - from, MADV_DONTNEED);
    }
    leave();
    int (*theirs)(size_t) = NEXT(malloc_trim);
    return theirs ? theirs(pad) : 0; /* musl has none */
}
