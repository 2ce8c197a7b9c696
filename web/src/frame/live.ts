/** Whether the page keeps itself up to date, and whether the service answers. */
import { ref, watch } from 'vue'

const KEY = 'couponbook.paused'
export const live = ref(sessionStorage.getItem(KEY) === null)
watch(live, (on) => (on ? sessionStorage.removeItem(KEY) : sessionStorage.setItem(KEY, '1')))

/** Whether the last request got an answer. */
export const reachable = ref(true)
