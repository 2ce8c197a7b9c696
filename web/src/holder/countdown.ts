/** Counts down to the end of a lock by the monotonic clock, from what the service said its own clock was. */
import { computed, onScopeDispose, ref } from 'vue'

export function useCountdown() {
  const deadline = ref<number | null>(null) // by performance.now()
  const total = ref(1)
  const now = ref(performance.now())
  const timer = window.setInterval(() => (now.value = performance.now()), 200)
  onScopeDispose(() => clearInterval(timer))

  /** Starts anew: `seconds` were left when the service answered, about `ago` milliseconds before now. */
  function start(seconds: number, whole: number, ago = 0): void {
    now.value = performance.now()
    deadline.value = now.value - ago + seconds * 1_000
    total.value = Math.max(whole, 1)
  }
  function stop(): void {
    deadline.value = null
  }
  const left = computed(() => (deadline.value === null ? 0 : Math.max(0, (deadline.value - now.value) / 1_000)))
  const share = computed(() => Math.min(1, left.value / total.value))
  const isOver = computed(() => deadline.value !== null && left.value <= 0)
  return { start, stop, left, share, isOver }
}
